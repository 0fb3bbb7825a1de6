// Light or dark, before anything is drawn: what was chosen here, else what the system says.
(() => {
  const NAME = "emu-theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const systems = () => (system.matches ? "dark" : "light");

  function chosen() {
    try {
      return localStorage.getItem(NAME);
    } catch {
      return null; // a browser that stores nothing
    }
  }

  function choose(theme) {
    try {
      if (theme === systems()) localStorage.removeItem(NAME); // from here on with the system again
      else localStorage.setItem(NAME, theme);
    } catch {
      // shown all the same, forgotten with the page
    }
  }

  function show(theme) {
    document.documentElement.dataset.theme = theme;
    document.getElementById("theme")?.setAttribute("aria-checked", String(theme === "dark"));
  }

  show(chosen() ?? systems());
  system.addEventListener("change", () => show(chosen() ?? systems()));
  addEventListener("DOMContentLoaded", () => {
    show(document.documentElement.dataset.theme);
    document.getElementById("theme").addEventListener("click", () => {
      const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      choose(theme);
      show(theme);
    });
  });
})();
