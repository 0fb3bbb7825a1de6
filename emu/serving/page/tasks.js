// What can be asked of a model: for each task its words, and how a request becomes updates.
//
// A task's `run(model, request, signal)` yields {picture, rows, of} for each finished row, {words} as text grows, {share} of a clip that is
// being made, and at the end {done: true} with what was made and the settings that the server says it was made with.

import { ask, events, reached, Refusal, Unreachable } from "./server.js";

const POLL_MS = 400;

export const TASKS = {
  draw: {
    kind: "Picture",
    verb: "Draw",
    label: "What to draw",
    hint: "Enter draws, Shift+Enter begins a new line.",
    example: "a picture in words",
    waits: "Waiting for the first row",
    empty: "Say in words what to draw, and press Draw. The picture appears here row by row.",
    demanded: ["prompt"],
    run: draw,
  },
  describe: {
    kind: "Description",
    verb: "Describe",
    label: "Question",
    hint: "Enter asks, Shift+Enter begins a new line.",
    example: "what to ask about the picture",
    waits: "Looking",
    empty: "Give a picture, and the model says what it sees.",
    demanded: ["image"],
    run: describe,
  },
  edit: {
    kind: "Edited picture",
    verb: "Edit",
    label: "What to change",
    hint: "Enter edits, Shift+Enter begins a new line.",
    example: "the change in words",
    waits: "Waiting for the first row",
    empty: "Give a picture and say what to change. The new picture appears here row by row.",
    demanded: ["image", "prompt"],
    run: edit,
  },
  fill: {
    kind: "Filled picture",
    verb: "Fill in",
    label: "What the whole picture shows",
    hint: "Enter fills in, Shift+Enter begins a new line.",
    example: "the whole picture in words",
    waits: "Filling in",
    empty: "Give a picture, paint over what is to be drawn anew, and say what the whole picture shows.",
    demanded: ["image", "mask", "prompt"],
    run: edit,
  },
  animate: {
    kind: "Clip",
    verb: "Make the clip",
    label: "What happens",
    hint: "Enter begins, Shift+Enter begins a new line.",
    example: "a clip in words",
    waits: "Waiting for a place",
    empty: "Say in words what happens. The clip plays here when it is finished.",
    demanded: ["prompt"],
    run: animate,
  },
};

/** The settings of a request by the names that the server knows; what is not set is the model's own. */
function settingsOf(request) {
  const named = {
    size: request.size,
    seed: request.seed,
    guidance_scale: request.guidance,
    temperature: request.temperature,
    top_p: request.topP,
    negative_prompt: request.negative,
  };
  return Object.fromEntries(Object.entries(named).filter(([, value]) => value !== null && value !== undefined && value !== ""));
}

async function* draw(model, request, signal) {
  const body = {
    model: model.name,
    prompt: request.prompt,
    ...settingsOf(request),
    stream: true,
    emu: { every_row: true },
  };
  yield* rows(await ask("v1/images/generations", { method: "POST", body, signal }), signal);
}

async function* edit(model, request, signal) {
  const body = new FormData();
  body.append("model", model.name);
  body.append("prompt", request.prompt);
  body.append("image", request.picture.blob, "picture.png");
  if (request.mask) body.append("mask", request.mask, "mask.png");
  for (const [name, value] of Object.entries(settingsOf(request))) body.append(name, String(value));
  body.append("stream", "true");
  body.append("emu[every_row]", "true");
  yield* rows(await ask("v1/images/edits", { method: "POST", body, signal }), signal);
}

/** What the server says of how something was made: its settings with the seed, and a warning or none. */
function told({ settings, seed, warning } = {}) {
  return { settings: { ...settings, seed }, warning: warning ?? "" };
}

async function* rows(answer, signal) {
  for await (const event of events(answer, signal)) {
    const picture = pngOf(event.b64_json);
    if (event.type.endsWith(".partial_image")) yield { picture, rows: event.emu?.rows ?? 0, of: event.emu?.of ?? 1 };
    if (event.type.endsWith(".completed")) {
      yield { done: true, picture, ...told(event.emu) };
      return;
    }
  }
  throw new Unreachable("The connection ended before the picture was finished.");
}

async function* describe(model, request, signal) {
  const content = [{ type: "image_url", image_url: { url: await dataAddress(request.picture.blob) } }];
  if (request.prompt) content.push({ type: "text", text: request.prompt });
  const body = { model: model.name, messages: [{ role: "user", content }], ...settingsOf(request), stream: true };
  const answer = await ask("v1/chat/completions", { method: "POST", body, signal });
  let [words, about, ended] = ["", {}, false];
  for await (const event of events(answer, signal)) {
    const [choice] = event.choices ?? [];
    words += choice?.delta?.content ?? "";
    about = event.emu ?? about;
    ended ||= Boolean(choice?.finish_reason);
    yield { words };
  }
  if (!ended) throw new Unreachable("The connection ended before the answer was finished.");
  yield { done: true, words: words.trim(), ...told(about) };
}

async function* animate(model, request, signal) {
  const body = { model: model.name, prompt: request.prompt, ...settingsOf(request) };
  let job = await (await ask("v1/videos", { method: "POST", body, signal })).json();
  const path = `v1/videos/${encodeURIComponent(job.id)}`;
  try {
    while (job.status === "queued" || job.status === "in_progress") {
      yield { share: (job.progress ?? 0) / 100, queued: job.status === "queued" };
      await pause(POLL_MS, signal);
      job = await reached((await ask(path, { signal })).json(), signal);
    }
    if (job.status !== "completed") throw new Refusal(500, { error: job.error ?? { message: `The clip is ${job.status}.` } }, 0);
    const clip = await reached((await ask(`${path}/content`, { signal })).blob(), signal);
    yield { done: true, clip, ...told(job.emu) };
  } finally {
    if (signal.aborted) ask(path, { method: "DELETE" }).catch(() => {}); // a job that is gone needs no cancelling
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

function pngOf(base64) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type: "image/png" });
}

function dataAddress(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(blob);
  });
}
