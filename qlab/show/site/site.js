// What a page of qlab does by itself: code folded or shown, figures large, tables sorted, claims chosen by verdict. All of it works without.
(function () {
  const words = document.body.dataset; // the page's, in its language
  const every = (selector) => [...document.querySelectorAll(selector)];
  const made = (name, text, place, action) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = name;
    button.textContent = text;
    button.addEventListener("click", action);
    place.append(button);
    return button;
  };

  const codes = every("details.code");
  const bar = document.querySelector(".bar ul");
  if (codes.length && bar) {
    const place = document.createElement("li");
    place.className = "last";
    bar.append(place);
    const toggle = made("code-switch", words.showCode, place, () => {
      const open = toggle.getAttribute("aria-pressed") !== "true";
      toggle.setAttribute("aria-pressed", open);
      codes.forEach((code) => (code.open = open));
    });
    toggle.setAttribute("aria-pressed", false);
  }

  const dialog = document.createElement("dialog");
  dialog.setAttribute("aria-label", words.enlarged);
  const large = document.createElement("div");
  large.tabIndex = 0;
  made("small", words.close, dialog, () => dialog.close());
  dialog.append(large);
  dialog.addEventListener("close", () => large.replaceChildren()); // what is hidden must not hold names that figures refer to
  document.body.append(dialog);
  for (const place of every(".qlab-picture, main .qlab-figure")) {
    if (!place.querySelector("svg") || (place.matches(".qlab-figure") && place.closest(".qlab-picture"))) continue;
    const button = made("small enlarge", words.enlarge, place.parentElement, () => {
      large.replaceChildren(place.querySelector("svg").cloneNode(true));
      dialog.showModal();
    });
    place.after(button);
  }

  // Numbers with thousands' commas, a sign, a unit or an error behind them; what is none comes last.
  const value = (cell) => parseFloat(cell.textContent.replace(/,/g, "").replace("−", "-"));
  for (const table of every("main table")) {
    const body = table.tBodies[0];
    const heads = table.tHead ? [...table.tHead.rows[table.tHead.rows.length - 1].cells] : [];
    if (!body || body.rows.length < 3) continue;
    heads.forEach((head, column) => {
      if (head.tagName !== "TH" || !head.textContent.trim()) return;
      const text = head.textContent.trim();
      head.textContent = "";
      made("", text, head, () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows];
        const numbers = rows.filter((row) => !isNaN(value(row.cells[column]))).length > rows.length / 2;
        rows.sort((a, b) => {
          const [x, y] = [a.cells[column], b.cells[column]];
          if (!numbers) return (down ? -1 : 1) * x.textContent.trim().localeCompare(y.textContent.trim());
          if (isNaN(value(x)) || isNaN(value(y))) return isNaN(value(x)) - isNaN(value(y));
          return (down ? -1 : 1) * (value(x) - value(y));
        });
        body.append(...rows);
      });
    });
  }

  const filter = document.querySelector("#verdict");
  if (filter) {
    filter.addEventListener("change", () => {
      for (const row of every("#claims tbody tr")) row.hidden = filter.value !== "" && row.dataset.verdict !== filter.value;
    });
  }

  // The section that is read: the last whose heading has passed the upper third of the window; at the end of the page the last of all.
  const links = every(".outline a");
  const headings = every("main h2[id]");
  const mark = () => {
    const end = scrollY > 0 && scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
    const read = end ? headings.at(-1) : headings.findLast((heading) => heading.getBoundingClientRect().top < innerHeight / 3);
    links.forEach((link) => link.classList.toggle("here", link.getAttribute("href") === "#" + read?.id));
  };
  for (const event of ["scroll", "resize", "load"]) addEventListener(event, () => requestAnimationFrame(mark), { passive: true });
  const outline = document.querySelector(".outline details");
  if (outline) outline.open = matchMedia("(min-width: 64rem)").matches;
})();
