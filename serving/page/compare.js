// The result over the bicubic enlargement, with a divider that follows pointer and slider.

export class Compare {
  constructor(box, slider, zoom) {
    this.box = box;
    this.slider = slider;
    this.zoom = zoom;
    this.frame = box.querySelector(".frame");
    this.result = box.querySelector("#result");
    this.bicubic = box.querySelector("#bicubic");
    slider.addEventListener("input", () => this.place(Number(slider.value)));
    zoom.addEventListener("click", () => this.enlarge(!box.classList.contains("actual")));
    this.frame.addEventListener("pointerdown", (event) => {
      // At actual size dragging the picture scrolls it; there the divider alone is taken.
      const onDivider = event.target.closest(".divider");
      if (event.button !== 0 || (box.classList.contains("actual") && !onDivider)) return;
      event.preventDefault();
      this.frame.setPointerCapture(event.pointerId);
      this.follow(event);
    });
    this.frame.addEventListener("pointermove", (event) => {
      if (this.frame.hasPointerCapture(event.pointerId)) this.follow(event);
    });
  }

  // Both are blobs. Resolves once both can be seen.
  async show(result, bicubic) {
    this.clear();
    this.result.src = URL.createObjectURL(result);
    this.bicubic.src = URL.createObjectURL(bicubic);
    await Promise.all([this.result.decode(), this.bicubic.decode()]);
    const { naturalWidth: width, naturalHeight: height } = this.result;
    // As wide as the page, but no higher than most of the window, and small pictures at most twice their size.
    this.frame.style.setProperty("--fit", `min(${2 * width}px, ${((78 * width) / height).toFixed(2)}vh)`);
    this.enlarge(false);
    this.place(50);
    return { width, height };
  }

  clear() {
    for (const picture of [this.result, this.bicubic]) {
      if (picture.src) URL.revokeObjectURL(picture.src);
      picture.removeAttribute("src");
    }
  }

  follow(event) {
    const { left, width } = this.frame.getBoundingClientRect();
    this.place(Math.min(100, Math.max(0, (100 * (event.clientX - left)) / width)));
  }

  place(percent) {
    this.frame.style.setProperty("--split", `${percent}%`);
    this.slider.value = percent;
    this.slider.setAttribute("aria-valuetext", `${Math.round(percent)} %`);
  }

  enlarge(actual) {
    this.box.classList.toggle("actual", actual);
    this.zoom.setAttribute("aria-pressed", String(actual));
  }
}
