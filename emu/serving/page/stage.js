// Where the result appears: waiting, growing row by row, finished, cancelled or failed.

const SMALL = 256; // pictures up to this many pixels on their longer side are shown with sharp pixels
const SHOWN_SETTINGS = {
  seed: "Seed",
  size: "Size",
  guidance_scale: "Guidance",
  temperature: "Temperature",
  top_k: "Top-k",
  top_p: "Top-p",
  negative_prompt: "Negative prompt",
  frames: "Frames",
  fps: "Frames a second",
};

const PROMPTS = { describe: "Question", edit: "Change" };

const element = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const shapeOf = (size) => {
  const [width, height] = (size || "1x1").split("x").map(Number);
  return { width, height };
};
export const isSmall = (width, height) => Math.max(width, height) <= SMALL;

export class Stage {
  #address = null;

  /** Nothing was made yet; `retry` offers to try again. */
  empty(words, retry = false) {
    this.#only("empty");
    element("empty-words").textContent = words;
    element("reconnect").hidden = !retry;
    element("progress").hidden = element("about").hidden = true;
    element("stage").dataset.state = retry ? "failed" : "empty";
  }

  /** A request was sent; `words` say what it waits for. */
  waiting(work, words) {
    this.#forget();
    const begins = work.task === "describe" || work.task === "fill"; // the given picture is what is looked at, or drawn into
    this.#only(begins ? "picture" : "empty");
    if (begins) this.#showPicture(work.request.picture.blob, work.request.picture, "The given picture");
    element("empty-words").textContent = "";
    element("reconnect").hidden = true;
    element("about").hidden = true;
    element("progress").hidden = false;
    element("stage").dataset.state = "waiting";
    element("bar").removeAttribute("value");
    if (!begins) this.#shape(work.request.picture ?? shapeOf(work.request.size));
    element("count").textContent = words;
    this.#setWords(null);
    this.say(words);
    this.reveal();
  }

  /** Scroll the picture into sight where it is not. */
  reveal() {
    element("frame").scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
  }

  /** A picture of which `rows` of `of` rows are drawn. */
  rows(work, { picture, rows, of }) {
    this.#only("picture");
    element("stage").dataset.state = "drawing";
    this.#showPicture(picture, null, `${work.request.prompt}, ${rows} of ${of} rows drawn`);
    element("picture").style.clipPath = `inset(0 0 ${100 * (1 - rows / of)}% 0)`;
    element("bar").value = rows / of;
    element("count").textContent = `Row ${rows} of ${of}`;
    const quarter = Math.max(1, Math.round(of / 4));
    if (rows % quarter === 0 && rows < of) this.say(`Row ${rows} of ${of}`);
  }

  /** The share of a clip that is made. */
  share({ share, queued }) {
    element("stage").dataset.state = queued ? "waiting" : "drawing";
    if (share > 0) element("bar").value = share;
    element("count").textContent = queued ? "Waiting for a place" : share > 0 ? `${Math.round(100 * share)} %` : "Making the clip";
  }

  /** Text as it grows. */
  words(words) {
    element("stage").dataset.state = "drawing";
    element("about").hidden = false;
    element("about").dataset.growing = "yes";
    element("count").textContent = "Writing";
    this.#setWords(words);
  }

  /** Show a finished work; `outcome` says what is worth saying of it. */
  async show(work, outcome = "") {
    this.#forget();
    element("progress").hidden = true;
    element("about").hidden = false;
    delete element("about").dataset.growing;
    element("stage").dataset.state = "done";
    this.#setWords(work.words ?? null);
    element("outcome").textContent = outcome;
    element("warning").textContent = work.warning;
    this.#tellSettings(work);
    element("vary").hidden = work.task === "describe";
    element("copy").hidden = work.words === undefined || !navigator.clipboard; // absent without HTTPS
    element("uses").hidden = !work.picture;
    const made = work.clip ?? work.picture;
    this.#offer(work, made);
    if (work.clip) await this.#showClip(work);
    else {
      this.#only("picture");
      const shown = made ?? work.request.picture.blob;
      await this.#showPicture(shown, work.request.picture, work.words ? "The given picture" : `${work.request.prompt}`);
    }
  }

  /** The request ended without a result: `words` say how far it came. */
  stopped(words) {
    element("stage").dataset.state = "stopped";
    if (element("picture").hidden && element("clip").hidden) this.empty(words);
    else {
      element("progress").hidden = false;
      if (!element("bar").hasAttribute("value")) element("bar").value = 0;
      element("count").textContent = words;
    }
    element("stage").dataset.state = "stopped";
    this.say(words);
  }

  /** Say something to who does not see the page. */
  say(words) {
    element("said").textContent = words;
  }

  /** A small picture of what is shown, for the shelf. */
  thumbnail() {
    const source = element("clip").hidden ? element("picture") : element("clip");
    const [width, height] = [source.naturalWidth ?? source.videoWidth, source.naturalHeight ?? source.videoHeight];
    const scale = Math.min(1, 192 / Math.max(width, height));
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: Math.max(1, width * scale), height: Math.max(1, height * scale) });
    canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
    return { thumbnail: canvas.toDataURL(), small: isSmall(width, height) };
  }

  #only(shown) {
    for (const id of ["picture", "clip", "empty"]) element(id).hidden = id !== shown;
    if (shown !== "clip") element("clip").pause();
    element("picture").style.clipPath = "";
  }

  #forget() {
    if (this.#address) URL.revokeObjectURL(this.#address);
    this.#address = null;
  }

  async #showPicture(blob, known, words) {
    const image = element("picture");
    const before = image.src;
    image.alt = words;
    image.src = URL.createObjectURL(blob);
    await image.decode().catch(() => {}); // the next row may have come before
    if (before.startsWith("blob:")) URL.revokeObjectURL(before);
    const [width, height] = [known?.width ?? image.naturalWidth, known?.height ?? image.naturalHeight];
    image.classList.toggle("pixels", isSmall(width, height));
    this.#shape({ width, height });
  }

  async #showClip(work) {
    const clip = element("clip");
    this.#only("clip");
    this.#address = URL.createObjectURL(work.clip);
    clip.setAttribute("aria-label", `Clip: ${work.request.prompt}`);
    clip.src = this.#address;
    await new Promise((resolve) => {
      clip.addEventListener("error", resolve, { once: true });
      clip.requestVideoFrameCallback?.(resolve); // its first frame can be seen, and drawn
      setTimeout(resolve, 1000); // nothing is drawn in a tab that is hidden
    });
    clip.classList.toggle("pixels", isSmall(clip.videoWidth, clip.videoHeight));
    this.#shape({ width: clip.videoWidth, height: clip.videoHeight });
    if (!calm.matches) clip.play().catch(() => {}); // the controls play it
  }

  #shape({ width, height }) {
    element("frame").style.setProperty("--shape", width && height ? width / height : 1);
  }

  #setWords(words) {
    element("words").hidden = words === null;
    element("words").textContent = words ?? "";
  }

  #tellSettings({ request, settings, seconds }) {
    const rows = [[PROMPTS[request.task] ?? "Prompt", request.prompt]];
    for (const [name, title] of Object.entries(SHOWN_SETTINGS)) {
      const value = settings[name];
      if (value === undefined || value === null || value === "" || (name === "top_k" && value === 0)) continue;
      rows.push([title, Array.isArray(value) ? `${value[1]} × ${value[0]}` : String(value)]);
    }
    if (seconds !== undefined) rows.push(["Time", `${seconds.toFixed(1)} s`]);
    const parts = rows.map(([title, value]) => {
      const [part, name, said] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
      name.textContent = title;
      said.textContent = value;
      part.append(name, said);
      return part;
    });
    element("settings").replaceChildren(...parts);
  }

  #offer({ request, settings, clip }, made) {
    const link = element("download");
    link.hidden = !made;
    if (!made) return;
    if (link.href.startsWith("blob:")) URL.revokeObjectURL(link.href);
    link.href = URL.createObjectURL(made);
    const title = request.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60).replace(/^-|-$/g, "");
    link.download = `${title || "emu"}-${settings.seed ?? request.seed}.${clip ? "mp4" : "png"}`;
    link.textContent = clip ? "Download MP4" : "Download PNG";
  }
}
