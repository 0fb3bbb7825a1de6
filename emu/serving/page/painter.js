// The mask of a picture: strokes of a brush and rectangles, drawn over it, taken back one by one.

export class Painter {
  #canvas = document.getElementById("mask");
  #brush = document.getElementById("brush");
  #covered = document.getElementById("covered");
  #undo = document.getElementById("undo");
  #clear = document.getElementById("clear");
  #marks = [];
  #stroke = null;

  /** `onChange()` is called when what is marked changes. */
  constructor(onChange) {
    this.onChange = onChange;
    const value = document.getElementById("brush-value");
    const told = () => (value.textContent = `${this.#brush.value} pixels`);
    this.#brush.addEventListener("input", told);
    this.tellBrush = told;
    this.#undo.addEventListener("click", () => this.undo());
    this.#clear.addEventListener("click", () => this.restore([]));
    document.getElementById("rectangle").addEventListener("click", () => this.#markRectangle());
    document.getElementById("painting").addEventListener("keydown", (event) => {
      if (event.key === "z" && (event.ctrlKey || event.metaKey) && event.target.type !== "number") {
        event.preventDefault();
        this.undo();
      }
      if (event.key === "Enter" && event.target.type === "number") {
        event.preventDefault(); // it marks the rectangle, and does not start yet
        this.#markRectangle();
      }
    });
    this.#canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) this.#canvas.addEventListener(name, () => this.#end());
  }

  /** Begin anew on a picture of this size; none hides the mask. */
  open(picture) {
    this.#canvas.hidden = document.getElementById("painting").hidden = picture === null;
    if (picture === null) return;
    const { width, height } = picture;
    Object.assign(this.#canvas, { width, height });
    Object.assign(this.#brush, { max: Math.max(2, Math.round(Math.min(width, height) / 2)), value: Math.max(1, Math.round(width / 8)) });
    for (const [name, most] of [["left", width - 1], ["top", height - 1], ["width", width], ["height", height]])
      document.getElementById(name).max = most;
    for (const [name, share] of [["left", 4], ["top", 4], ["width", 2], ["height", 2]])
      document.getElementById(name).value = Math.floor((name === "left" || name === "width" ? width : height) / share);
    this.tellBrush();
    this.restore([]);
  }

  /** The strokes and rectangles, in order. */
  get marks() {
    return [...this.#marks];
  }

  get isEmpty() {
    return this.#marks.length === 0;
  }

  /** Take marks back that `marks` gave. */
  restore(marks) {
    this.#marks = [...marks];
    this.#redraw();
  }

  undo() {
    this.#marks.pop();
    this.#redraw();
  }

  /** The mask as PNG: transparent where the picture is to be drawn anew, as the interface wants it. */
  blob() {
    const { width, height } = this.#canvas;
    const pixels = this.#pixels();
    for (let place = 3; place < pixels.data.length; place += 4) pixels.data[place] = pixels.data[place] > 127 ? 0 : 255;
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas.convertToBlob({ type: "image/png" });
  }

  /** White and the page's accent, seen on pictures of any colour. */
  #checks(context) {
    const side = Math.max(1, Math.round(this.#canvas.width / 32));
    const tile = new OffscreenCanvas(2 * side, 2 * side);
    const drawn = tile.getContext("2d");
    drawn.fillStyle = "white";
    drawn.fillRect(0, 0, 2 * side, 2 * side);
    drawn.fillStyle = getComputedStyle(this.#canvas).color;
    drawn.fillRect(0, 0, side, side);
    drawn.fillRect(side, side, side, side);
    return context.createPattern(tile, "repeat");
  }

  #pixels() {
    const { width, height } = this.#canvas;
    return this.#canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, width, height);
  }

  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    const scale = this.#canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  #begin(event) {
    if (event.button !== 0) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#stroke = { width: Number(this.#brush.value), points: [this.#place(event)] };
    this.#marks.push(this.#stroke);
    this.#redraw();
  }

  #move(event) {
    if (!this.#stroke) return;
    for (const one of event.getCoalescedEvents?.() ?? [event]) this.#stroke.points.push(this.#place(one));
    this.#redraw();
  }

  #end() {
    this.#stroke = null;
  }

  #markRectangle() {
    const [left, top, width, height] = ["left", "top", "width", "height"].map((name) => document.getElementById(name).valueAsNumber);
    const { width: most, height: deep } = this.#canvas;
    if (!(width >= 1 && height >= 1 && left >= 0 && top >= 0 && left < most && top < deep)) {
      this.#covered.textContent = `That rectangle is outside the picture, which has ${most} × ${deep} pixels.`;
      return;
    }
    this.#marks.push({ rectangle: [left, top, width, height].map(Math.round) });
    this.#redraw();
  }

  #redraw() {
    const context = this.#canvas.getContext("2d", { willReadFrequently: true });
    context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    const checks = this.#checks(context);
    Object.assign(context, { fillStyle: checks, strokeStyle: checks, lineCap: "round", lineJoin: "round" });
    for (const { rectangle, width, points } of this.#marks) {
      if (rectangle) context.fillRect(...rectangle);
      else drawStroke(context, width, points);
    }
    const pixels = this.#pixels().data;
    let marked = 0;
    for (let place = 3; place < pixels.length; place += 4) marked += pixels[place] > 127;
    this.#covered.textContent = this.isEmpty ? "Nothing is marked yet." : `${Math.round((400 * marked) / pixels.length)} % marked`;
    this.#undo.disabled = this.#clear.disabled = this.isEmpty;
    this.onChange();
  }
}

function drawStroke(context, width, points) {
  context.lineWidth = width;
  context.beginPath();
  context.moveTo(...points[0]);
  for (const point of points) context.lineTo(...point);
  context.stroke();
  context.beginPath(); // a click alone leaves a dot
  context.arc(...points[0], width / 2, 0, 2 * Math.PI);
  context.fill();
}
