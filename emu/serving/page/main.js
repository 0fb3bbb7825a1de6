// The page: one request at a time, from the form to the stage and onto the shelf.

import { Gallery } from "./gallery.js";
import { Given } from "./given.js";
import { Painter } from "./painter.js";
import { RequestForm } from "./request.js";
import { hasKey, Refusal, rememberKey, servedModel, Unreachable } from "./server.js";
import { Stage } from "./stage.js";
import { TASKS } from "./tasks.js";

const GIVEN = Object.keys(TASKS).filter((task) => TASKS[task].demanded.includes("image"));
const element = (id) => document.getElementById(id);

const form = new RequestForm();
const stage = new Stage();
const gallery = new Gallery(choose);
const painter = new Painter(() => form.clearProblems());
const given = new Given({ onChange: givenChanged, onProblem: (words) => form.showProblem("image", words), onStray: makeRoom });

let model = null;
let running = null; // {controller, work} of the request that is under way
let chosen = null; // the work that is shown
let failed = null; // the request that "Try again" sends again
let countdown = 0; // the timer until it may

function givenChanged() {
  painter.open(form.task === "fill" ? given.picture : null);
  form.clearProblems();
}

/** A task for a picture that is dropped or pasted: the one that is open, else the first that the model can do. */
function makeRoom() {
  if (GIVEN.includes(form.task)) return !element("controls").disabled;
  const task = GIVEN.find((name) => model && (model.tasks[name] ?? null) === null);
  if (task) openTask(task);
  return Boolean(task);
}

function openTask(task) {
  form.show(task, model);
  painter.open(task === "fill" ? given.picture : null);
  if (!model) return;
  const why = model.tasks[task] ?? null;
  if (!running && !chosen) stage.empty(why === null ? TASKS[task].empty : "");
  if (why !== null) stage.say(why);
}

async function connect() {
  stage.empty("Asking the server for its model …");
  try {
    model = await servedModel();
  } catch (error) {
    if (error instanceof Refusal && error.status === 401 && (await askForKey())) return connect();
    stage.empty(error.message, true);
    stage.say(error.message);
    return;
  }
  element("model").textContent = model.name;
  document.title = `Emu · ${model.name}`;
  for (const { value, labels } of element("form").elements.task)
    labels[0].classList.toggle("is-untrained", (model.tasks[value] ?? null) !== null);
  for (const button of element("uses").children) button.hidden = (model.tasks[button.value] ?? null) !== null;
  given.sizes = model.sizes;
  form.open(model);
  openTask(form.task);
}

/** Ask for the key; false where none was given. */
function askForKey() {
  const dialog = element("key-dialog");
  element("key-problem").hidden = !hasKey(); // the one that was sent was wrong
  element("key").value = "";
  dialog.returnValue = "none"; // of Escape
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "use" && element("key").value !== "";
        if (given) rememberKey(element("key").value);
        element("key").value = "";
        resolve(given);
      },
      { once: true },
    );
  });
}

async function start() {
  if (running || !model || element("controls").disabled) return;
  const task = form.task;
  const request = form.read(task, { hasPicture: given.picture !== null, hasMask: !painter.isEmpty });
  if (request === null) return;
  if (GIVEN.includes(task)) request.picture = given.picture;
  if (task === "fill") Object.assign(request, { mask: await painter.blob(), marks: painter.marks });
  if (!running) await run(request); // Enter may have been pressed again
}

/** Send a request and show what becomes of it; `original` is the work that it repeats. */
async function run(request, original = null) {
  const controller = new AbortController();
  const work = { task: request.task, kind: TASKS[request.task].kind, request };
  running = { controller, work };
  chosen = null;
  failed = null;
  form.clearProblems();
  gallery.mark(null);
  const from = document.activeElement;
  setRunning(true);
  stage.waiting(work, TASKS[request.task].waits);
  if (!from.checkVisibility()) element("cancel").focus({ preventScroll: true }); // "Repeat" is gone with the result before
  const begun = performance.now();
  let progress = "";
  try {
    for await (const update of TASKS[request.task].run(model, request, controller.signal)) {
      if (update.done) await finish(work, update, (performance.now() - begun) / 1000, original);
      else if (update.rows !== undefined) {
        stage.rows(work, update);
        progress = ` after row ${update.rows} of ${update.of}`;
      } else if (update.words !== undefined) stage.words(update.words);
      else stage.share(update);
    }
  } catch (error) {
    if (controller.signal.aborted) stage.stopped(`Cancelled${progress}.`);
    else await refuse(error, request, original, progress);
  } finally {
    const last = document.activeElement;
    setRunning(false);
    if (last === document.body || last === element("cancel"))
      (from.checkVisibility() && from !== document.body ? from : element("start")).focus({ preventScroll: true });
  }
}

async function finish(work, { picture, words, clip, settings, warning }, seconds, original) {
  const seed = settings.seed ?? work.request.seed ?? null;
  Object.assign(work, { picture, words, clip, settings, warning, seconds, seed });
  const same = original !== null && (await isSame(work, original));
  const otherwise = original ? "Not the same as before: the server draws otherwise now." : "";
  const outcome = same ? "The same again, byte for byte." : otherwise;
  await stage.show(work, outcome);
  if (!same) gallery.add(Object.assign(work, stage.thumbnail()));
  chosen = same ? original : work;
  gallery.mark(chosen);
  stage.say(`Finished. ${work.words ?? outcome}`);
  if (!original) form.finished();
}

async function isSame(work, original) {
  if (work.words !== undefined) return work.words === original.words;
  const read = async ({ picture, clip }) => new Uint8Array(await (picture ?? clip).arrayBuffer());
  const [ours, theirs] = await Promise.all([read(work), read(original)]);
  return ours.length === theirs.length && ours.every((byte, place) => byte === theirs[place]);
}

async function refuse(error, request, original, progress) {
  if (error instanceof Refusal && error.status === 401) {
    stage.stopped("The server asks for a key.");
    if (await askForKey()) {
      running = null;
      return run(request, original);
    }
    return;
  }
  const known = error instanceof Refusal || error instanceof Unreachable;
  const words = known ? error.message : `This page failed: ${error.message}`;
  if (!known) console.error(error);
  stage.stopped(progress ? `Stopped${progress}.` : "Nothing was made.");
  if (error.field && form.showProblem(error.field, words)) return;
  failed = { request, original };
  const wait = error.wait ? ` It asks to wait ${error.wait} ${error.wait === 1 ? "second" : "seconds"}.` : "";
  element("problem").hidden = false;
  element("problem-words").textContent = words + wait;
  countDown(performance.now() + 1000 * (error.wait ?? 0));
}

/** Let "Try again" be pressed from this time on. */
function countDown(end) {
  clearTimeout(countdown);
  const left = Math.ceil((end - performance.now()) / 1000);
  element("again").textContent = left > 0 ? `Try again in ${left} s` : "Try again";
  element("again").disabled = left > 0;
  if (left > 0) countdown = setTimeout(countDown, 200, end);
}

function setRunning(is) {
  if (!is) running = null;
  element("start").setAttribute("aria-disabled", String(is));
  element("cancel").hidden = !is;
  element("stage").setAttribute("aria-busy", String(is));
}

function cancel() {
  running?.controller.abort(new DOMException("cancelled", "AbortError"));
}

function choose(work) {
  if (running) return;
  chosen = work;
  gallery.mark(work);
  openWork(work);
  stage.show(work);
  stage.reveal();
}

/** Put a work's request into the form. */
function openWork({ task, request }) {
  openTask(task);
  form.write(request);
  if (!request.picture) return;
  given.show(request.picture);
  if (request.marks) painter.restore(request.marks);
}

function repeat() {
  if (!chosen || running) return;
  const work = chosen;
  openWork(work);
  run(work.request, work);
}

function vary() {
  if (!chosen || running) return;
  openWork(chosen);
  form.newSeed();
  run({ ...chosen.request, seed: Number(element("seed").value) });
}

async function use(task) {
  const { picture } = chosen;
  openTask(task);
  await given.take(picture, "The shown picture");
  element("prompt").focus();
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
element("form").addEventListener("change", (event) => {
  if (event.target.name === "task") openTask(event.target.value);
});
element("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  start();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !element("key-dialog").open) cancel();
});
element("cancel").addEventListener("click", cancel);
element("again").addEventListener("click", () => failed && run(failed.request, failed.original));
element("reconnect").addEventListener("click", connect);
element("repeat").addEventListener("click", repeat);
element("vary").addEventListener("click", vary);
element("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(chosen.words);
  stage.say("Copied.");
  element("outcome").textContent = "Copied.";
});
element("uses").addEventListener("click", (event) => event.target.value && use(event.target.value));
openTask("draw");
connect();
