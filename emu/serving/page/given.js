// The picture that is given to describe, edit or fill in: dropped, pasted, chosen, or taken from what was made.

const LARGEST_FILE = 20 * 2 ** 20;

/**
 * The given picture.
 *
 * `picture` is null or {blob, bitmap, width, height, note}. One of a size that the model knows is passed on byte for byte; another is
 * scaled to the known size of nearest shape and cut at its centre, and `note` says so.
 */
export class Given {
  picture = null;
  #canvas = document.getElementById("given");
  #words = document.getElementById("drop-words");
  #note = document.getElementById("picture-note");
  #forget = document.getElementById("forget");
  #sizes = [];

  /** `onChange()` is called when there is another picture or none; `onProblem(words)` when a file is none; `onStray()` before one is read
   *  that was dropped or pasted. */
  constructor({ onChange, onProblem, onStray }) {
    this.onChange = onChange;
    this.onProblem = onProblem;
    const file = document.getElementById("file");
    file.addEventListener("change", () => {
      if (file.files.length) this.take(file.files[0], file.files[0].name);
      file.value = ""; // the same file may be chosen again
    });
    this.#forget.addEventListener("click", () => {
      this.clear();
      file.focus();
    });
    this.#listen(onStray);
  }

  /** (height, width) of the pictures that the model knows. */
  set sizes(sizes) {
    this.#sizes = sizes;
  }

  #listen(onStray) {
    const drop = document.getElementById("drop");
    const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault(); // else the browser leaves the page and shows the file
      drop.classList.add("is-over");
    });
    addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) drop.classList.remove("is-over");
    });
    addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      drop.classList.remove("is-over");
      const [file] = event.dataTransfer.files;
      if (file && onStray()) this.take(file, file.name);
    });
    addEventListener("paste", (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
      if (!file || !onStray()) return;
      event.preventDefault();
      this.take(file, "pasted picture");
    });
  }

  /** Take a file or blob as the picture. */
  async take(blob, name) {
    if (blob.size > LARGEST_FILE) {
      this.onProblem(`${name} has ${Math.round(blob.size / 2 ** 20)} MB; expected at most ${LARGEST_FILE / 2 ** 20} MB.`);
      return;
    }
    let bitmap;
    try {
      bitmap = await createImageBitmap(blob);
    } catch {
      this.onProblem(`${name} is not a picture that this browser can read; choose a PNG, JPEG or WebP file.`);
      return;
    }
    this.show(await this.#fitted(blob, bitmap));
  }

  /** Show a picture that was taken before. */
  show(picture) {
    this.picture = picture;
    const { bitmap, width, height, note } = picture;
    Object.assign(this.#canvas, { width, height, hidden: false });
    this.#canvas.getContext("2d").drawImage(bitmap, 0, 0);
    this.#canvas.setAttribute("aria-label", `The given picture, ${width} × ${height} pixels`);
    this.#note.textContent = note;
    this.#words.hidden = true;
    this.#forget.hidden = false;
    this.onChange();
  }

  clear() {
    this.picture = null;
    this.#canvas.hidden = true;
    this.#note.textContent = "";
    this.#words.hidden = false;
    this.#forget.hidden = true;
    this.onChange();
  }

  async #fitted(blob, bitmap) {
    const { width, height } = bitmap;
    const known = this.#sizes.some(([rows, columns]) => rows === height && columns === width);
    const size = `${width} × ${height} pixels`;
    if (known && blob.type === "image/png") return { blob, bitmap, width, height, note: size };
    const [rows, columns] = known || !this.#sizes.length ? [height, width] : this.#nearest(width / height);
    const canvas = new OffscreenCanvas(columns, rows);
    const context = canvas.getContext("2d");
    const scale = Math.max(columns / width, rows / height);
    const [wide, high] = [width * scale, height * scale];
    context.fillStyle = "white"; // as the library reads pictures with clear places
    context.fillRect(0, 0, columns, rows);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, (columns - wide) / 2, (rows - high) / 2, wide, high);
    const changed = rows !== height || columns !== width;
    return {
      blob: await canvas.convertToBlob({ type: "image/png" }),
      bitmap: canvas.transferToImageBitmap(),
      width: columns,
      height: rows,
      note: changed ? `Scaled from ${width} × ${height} to ${columns} × ${rows} pixels, which the model knows.` : size,
    };
  }

  #nearest(shape) {
    const distance = ([rows, columns]) => Math.abs(Math.log(columns / rows / shape));
    return this.#sizes.reduce((best, size) => (distance(size) < distance(best) ? size : best));
  }
}
