// The form: what is asked for, and what is wrong with it, said beside the field that it concerns.

import { TASKS } from "./tasks.js";

const SEEDS = 1_000_000; // numbers that people can read out to each other
const LARGEST_SEED = Number.MAX_SAFE_INTEGER;
const FIELDS = {
  image: "file",
  mask: "mask",
  prompt: "prompt",
  size: "size",
  seed: "seed",
  guidance_scale: "guidance",
  temperature: "temperature",
  top_p: "top_p",
  negative_prompt: "negative",
};
/** What the server calls a part of a request -> the field of this form that it came from. */
const NAMES = { messages: "prompt" };

const element = (id) => document.getElementById(id);

export class RequestForm {
  #prompts = {};

  constructor() {
    this.newSeed();
    element("new-seed").addEventListener("click", () => {
      this.newSeed();
      this.clearProblems();
    });
    element("seed").addEventListener("input", () => (element("fresh").checked = false)); // who types a seed wants that one
    element("guidance").addEventListener("input", () => this.#tellGuidance());
    element("form").addEventListener("input", (event) => this.#forgive(event.target));
  }

  get task() {
    return element("form").elements.task.value;
  }

  /** Show the fields of a task, and of a model what it offers. */
  open(model) {
    const size = element("size");
    size.replaceChildren(...model.sizes.map(([height, width]) => new Option(`${width} × ${height}`, `${width}x${height}`)));
    if (!model.sizes.length) size.append(new Option("the model’s own", ""));
    if (model.guidance !== null) {
      element("guidance").max = Math.max(10, Math.ceil(model.guidance));
      element("guidance").value = model.guidance;
    }
    this.#tellGuidance();
    const ideas = model.prompts.map((prompt) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", className: "idea", textContent: prompt });
      button.addEventListener("click", () => {
        element("prompt").value = prompt;
        this.clearProblems();
        element("prompt").focus();
      });
      return button;
    });
    element("ideas").replaceChildren(...ideas);
    this.#prompts.describe ??= model.question;
    if (this.task === "describe") element("prompt").value ||= model.question;
    this.show(this.task, model);
  }

  /** Show the fields of a task. */
  show(task, model) {
    const { label, hint, example, verb } = TASKS[task];
    const shown = element("form").dataset.task;
    if (shown) this.#prompts[shown] = element("prompt").value;
    element("form").dataset.task = task;
    element("form").elements.task.value = task;
    for (const part of element("form").querySelectorAll("[data-tasks]"))
      part.hidden = !part.dataset.tasks.split(" ").includes(task);
    element("ideas").hidden ||= !model?.prompts.length;
    element("prompt").value = this.#prompts[task] ?? "";
    element("prompt").placeholder = example;
    element("prompt-label").textContent = label;
    element("prompt-hint").textContent = hint;
    element("start").textContent = verb;
    const why = model?.tasks[task] ?? null; // null where the model can do it
    element("controls").disabled = why !== null || !model;
    element("untrained").hidden = why === null;
    element("untrained-title").textContent = why === null ? "" : `${model.name} cannot do this`;
    element("untrained-reason").textContent = why ?? "";
    this.clearProblems();
  }

  newSeed() {
    element("seed").value = Math.floor(Math.random() * SEEDS);
  }

  /** The request as it stands, without picture and mask; null after a problem was shown. */
  read(task, { hasPicture, hasMask }) {
    this.clearProblems();
    const prompt = element("prompt").value.trim();
    const given = { prompt, image: hasPicture, mask: hasMask };
    const wanted = {
      image: "Choose a picture first.",
      mask: "Mark first what is to be drawn anew.",
      prompt: `${TASKS[task].label}? Write it here.`,
    };
    for (const name of TASKS[task].demanded) if (!given[name]) return this.#refuse(name, wanted[name]);
    const request = { task, prompt, temperature: this.#number("temperature"), topP: this.#number("top_p") };
    if (request.temperature === undefined) return this.#refuse("temperature", "Temperature is a number from 0 to 10, or empty.");
    if (request.topP === undefined) return this.#refuse("top_p", "Top-p is a number from 0 to 1, or empty.");
    if (task === "describe") return request;
    const seed = element("seed").value.trim();
    if (!/^\d+$/.test(seed) || Number(seed) > LARGEST_SEED)
      return this.#refuse("seed", `A seed is a whole number from 0 to ${LARGEST_SEED}.`);
    const sized = task === "draw" || task === "animate";
    return {
      ...request,
      seed: Number(seed),
      size: sized ? element("size").value : "",
      guidance: element("guidance").valueAsNumber,
      negative: element("negative").value.trim(),
    };
  }

  /** Fill the fields with an earlier request. */
  write(request) {
    element("prompt").value = request.prompt;
    element("temperature").value = request.temperature ?? "";
    element("top_p").value = request.topP ?? "";
    if (request.task === "describe") return;
    element("seed").value = request.seed;
    if (request.size) element("size").value = request.size;
    element("guidance").value = request.guidance;
    element("negative").value = request.negative;
    this.#tellGuidance();
  }

  /** After a finished picture: a new seed for the next, where one is wanted. */
  finished() {
    if (element("fresh").checked) this.newSeed();
  }

  /** Say what is wrong beside the field of this name; false where the form shows no such field. */
  showProblem(name, words) {
    const [outer] = name.split(/[.[]/); // of "messages.0.content" or "image[]"
    const known = NAMES[outer] ?? outer;
    const place = element(`${known}-problem`);
    const field = element(FIELDS[known]);
    if (!place || !field || place.closest("[data-tasks][hidden]")) return false;
    place.textContent = words;
    place.hidden = false;
    field.setAttribute("aria-invalid", "true");
    const folded = place.closest("details");
    if (folded) folded.open = true;
    field.focus();
    return true;
  }

  clearProblems() {
    for (const place of element("form").querySelectorAll("[id$=-problem]")) place.hidden = true;
    for (const field of element("form").querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
    element("problem").hidden = true;
  }

  #refuse(name, words) {
    this.showProblem(name, words);
    return null;
  }

  /** A number of the form, null where it is empty, undefined where it is none of the allowed. */
  #number(id) {
    const field = element(id);
    if (field.validity.badInput || field.validity.rangeOverflow || field.validity.rangeUnderflow) return undefined;
    return field.value === "" ? null : field.valueAsNumber;
  }

  #forgive(field) {
    if (!field.hasAttribute("aria-invalid")) return;
    field.removeAttribute("aria-invalid");
    field.closest("[data-field]").querySelector("[id$=-problem]").hidden = true;
  }

  #tellGuidance() {
    element("guidance-value").textContent = element("guidance").valueAsNumber.toFixed(1);
  }
}
