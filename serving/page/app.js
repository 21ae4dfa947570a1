// From chosen files to the result: order a job, ask how far it is, fetch what it made.

import { Compare } from "./compare.js";
import { Pictures } from "./pictures.js";

const ASK_EVERY = 300; // milliseconds
const GIVE_UP_AFTER = 60; // questions in a row that the server did not answer, one a second

const at = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

const lr = new Pictures(at("lr-zone"), false, changed);
const refs = new Pictures(at("refs-zone"), true, changed);
const compare = new Compare(at("compare"), at("split"), at("zoom"));
let server = null; // what it takes
let job = null; // the address of the job in work
let stop = null; // AbortController of the order in work

class Refused extends Error {}

function changed() {
  if (stop === null) say(""); // what it said was about other photos
}

function say(text, bad = false) {
  at("message").textContent = text;
  at("message").hidden = !text;
  at("message").classList.toggle("bad", bad);
}

function showStep(text, left = "", done = null, steps = null) {
  at("step").textContent = text;
  at("left").textContent = left;
  if (steps) {
    at("progress").max = steps;
    at("progress").value = done;
  } else {
    at("progress").removeAttribute("value");
  }
}

function duration(seconds) {
  return seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`;
}

// The answer, or Refused with the server's own line.
async function ask(address, options = {}) {
  const answer = await fetch(address, options);
  if (answer.ok) return answer;
  const text = await answer.json().then((body) => body.error, () => `the server answered ${answer.status}`);
  throw new Refused(text);
}

// What can be told without asking the server.
function problemOf(files) {
  if (!lr.files.length || !refs.files.length) return "Choose the photo to enlarge and at least one sharp reference.";
  if (!server) return "";
  const sum = files.reduce((bytes, file) => bytes + file.size, 0);
  if (sum > server.max_upload_bytes) {
    const limit = (server.max_upload_bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1 });
    return `The photos have ${(sum / 1e6).toFixed(1)} MB together; this server takes ${limit} MB. Choose fewer or smaller ones.`;
  }
  return "";
}

async function order() {
  const form = new FormData();
  form.append("lr", lr.files[0]);
  for (const file of refs.files) form.append("refs", file);
  form.append("seed", at("seed").value);
  form.append("format", at("format").value);
  form.append("bicubic", "true");
  form.append("explanation", "true");
  showStep("Sending the photos");
  const answer = await ask("api/jobs", { method: "POST", body: form, signal: stop.signal });
  return answer.json();
}

function showState(state) {
  if (state.state === "waiting") {
    showStep(state.ahead ? `Waiting: ${state.ahead} before this one` : "Waiting");
  } else {
    const left = state.seconds_left === null || state.done < 2 ? "" : `about ${duration(state.seconds_left)} left`;
    showStep(state.step ? state.step[0].toUpperCase() + state.step.slice(1) : "Starting", left, state.done, state.steps);
  }
}

// Ask until the job is done; what it is then.
async function follow(state) {
  let silent = 0;
  while (state.state === "waiting" || state.state === "running") {
    if (silent) showStep("The server does not answer; asking again");
    else showState(state);
    await pause(silent ? 1000 : ASK_EVERY);
    try {
      state = await (await ask(job, { signal: stop.signal })).json();
      silent = 0;
    } catch (error) {
      if (error instanceof Refused || stop.signal.aborted || ++silent > GIVE_UP_AFTER) throw error;
    }
  }
  if (state.state === "failed") throw new Refused(state.error);
  return state;
}

async function fetchFiles(state) {
  showStep("Fetching the result");
  const blobs = {};
  for (const name of ["bicubic", "result"]) blobs[name] = await (await ask(`${job}/${name}`, { signal: stop.signal })).blob();
  const { width, height } = await compare.show(blobs.result, blobs.bicubic);
  at("download").href = at("result").src;
  at("download").download = state.files.result.name;
  at("explanation").href = `${job}/explanation`;
  at("explanation").closest("p").hidden = false;
  const megabytes = (state.files.result.bytes / 1e6).toFixed(state.files.result.bytes < 1e6 ? 2 : 1);
  at("facts").textContent = `${width} × ${height}, ${megabytes} MB, made in ${state.seconds.toFixed(1)} s`;
  at("notes").replaceChildren(...state.notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })));
  at("notes").hidden = !state.notes.length;
}

async function upscale() {
  const problem = problemOf([...lr.files, ...refs.files]);
  if (problem) return say(problem, true);
  forget();
  stop = new AbortController();
  say("");
  at("start").disabled = true;
  at("outcome").hidden = true;
  at("work").hidden = false;
  try {
    const state = await order();
    job = `api/jobs/${state.id}`;
    await fetchFiles(await follow(state));
    at("outcome").hidden = false;
    at("outcome-title").focus({ preventScroll: true });
    at("outcome").scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (stop.signal.aborted) say("Cancelled.");
    else if (error instanceof Refused) say(error.message, true);
    else say("The server does not answer. Start it again with “amsa serve”, then press Upscale.", true);
    forget();
  } finally {
    stop = null;
    at("work").hidden = true;
    at("start").disabled = false;
  }
}

// Tell the server that nobody waits for the job any more; also while the page is being closed.
function forget() {
  if (job) fetch(job, { method: "DELETE", keepalive: true }).catch(() => {});
  job = null;
}

at("order").addEventListener("submit", (event) => {
  event.preventDefault();
  upscale();
});
at("cancel").addEventListener("click", () => stop?.abort());
at("explanation").addEventListener("click", () => {
  job = null; // fetched is forgotten
  setTimeout(() => (at("explanation").closest("p").hidden = true));
});
addEventListener("pagehide", forget);
for (const kind of ["dragover", "drop"]) {
  addEventListener(kind, (event) => event.preventDefault()); // a photo dropped beside a zone must not replace the page
}

try {
  server = await (await ask("api")).json();
  at("server").textContent =
    `Version ${server.version}, ${server.backend} on ${server.device}. Results of up to ${server.max_pixels / 1e6} megapixels, ` +
    `photos of ${server.max_upload_bytes / 1e6} MB together.`;
  at("keeping").textContent =
    "The server forgets what you sent and what it made once this page has fetched it or is closed, " +
    `at the latest after ${duration(server.keep_seconds)}.`;
  if (!server.trained) say("These weights are untrained: the picture shows the pipeline at work, not added detail.");
} catch {
  say("The server does not answer. Start it with “amsa serve” and load this page again.", true);
}
