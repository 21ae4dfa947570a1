// The two places where pictures are chosen or dropped, with thumbnails.

export class Pictures {
  // zone: the section; several: whether it holds more than one; changed: called after every change.
  constructor(zone, several, changed) {
    this.files = [];
    this.several = several;
    this.changed = changed;
    this.list = zone.querySelector(".thumbs");
    this.input = zone.querySelector("input");
    this.input.addEventListener("change", () => {
      this.add(this.input.files);
      this.input.value = ""; // so that the same file can be chosen again after it was removed
    });
    zone.addEventListener("dragover", (event) => {
      event.preventDefault();
      zone.classList.add("over");
    });
    zone.addEventListener("dragleave", (event) => {
      if (!zone.contains(event.relatedTarget)) zone.classList.remove("over");
    });
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      zone.classList.remove("over");
      this.add(event.dataTransfer.files);
    });
  }

  add(files) {
    if (!files.length) return;
    if (!this.several) for (const item of [...this.list.children]) this.drop(item);
    for (const file of this.several ? files : [files[0]]) this.show(file);
    this.changed();
  }

  show(file) {
    const item = document.createElement("li");
    const picture = document.createElement("img");
    const name = document.createElement("span");
    const size = document.createElement("span");
    const remove = document.createElement("button");
    picture.alt = "";
    picture.src = URL.createObjectURL(file);
    picture.addEventListener("load", () => (size.textContent = `${picture.naturalWidth} × ${picture.naturalHeight}`));
    picture.addEventListener("error", () => {
      const blank = document.createElement("div"); // a TIFF, or no picture at all: the server knows
      blank.className = "blank";
      blank.textContent = "no preview";
      picture.replaceWith(blank);
    });
    name.className = "name";
    name.textContent = name.title = file.name;
    size.className = "size";
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    remove.addEventListener("click", () => {
      this.drop(item);
      this.changed();
      this.input.focus();
    });
    item.file = file;
    item.append(picture, name, size, remove);
    this.list.append(item);
    this.files.push(file);
  }

  drop(item) {
    this.files.splice(this.files.indexOf(item.file), 1);
    const picture = item.querySelector("img");
    if (picture) URL.revokeObjectURL(picture.src);
    item.remove();
  }
}
