// What was made in this session: a shelf of small pictures, one of them chosen.

export class Gallery {
  #shelf = document.getElementById("shelf");
  #none = document.getElementById("gallery-empty");
  #template = document.getElementById("work");
  #buttons = new Map();

  /** `onChoose(work)` is called when a work of the shelf is clicked. */
  constructor(onChoose) {
    this.onChoose = onChoose;
  }

  /** Put a finished work first on the shelf. */
  add(work) {
    const item = this.#template.content.cloneNode(true);
    const button = item.querySelector("button");
    const image = item.querySelector("img");
    const words = item.querySelector(".work-words");
    const title = work.words ?? work.request.prompt;
    image.src = work.thumbnail;
    image.classList.toggle("pixels", work.small);
    words.textContent = title;
    button.classList.toggle("is-clip", work.task === "animate");
    const seed = work.seed === null ? "" : `seed ${work.seed}`;
    item.querySelector(".work-seed").textContent = seed;
    button.setAttribute("aria-label", [`${work.kind}: ${title}`, seed].filter(Boolean).join(", "));
    button.title = title;
    button.addEventListener("click", () => this.onChoose(work));
    this.#shelf.prepend(item);
    this.#buttons.set(work, button);
    this.#none.hidden = true;
  }

  /** Mark the work that is shown; null where none of the shelf is. */
  mark(work) {
    for (const [other, button] of this.#buttons) button.setAttribute("aria-pressed", String(other === work));
  }
}
