// A control of qlab: the choices' places, with a space between, name the picture that is shown.
(function (root) {
  const pictures = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const fields = [...root.querySelectorAll("form input, form select")];
  root.querySelector("form").addEventListener("input", () => {
    for (const field of fields) {
      if (field.type === "range") {
        const value = JSON.parse(field.dataset.values)[field.value];
        field.setAttribute("aria-valuetext", value);
        field.nextElementSibling.textContent = value;
      }
    }
    root.querySelector(".qlab-picture").innerHTML = pictures[fields.map((field) => field.value).join(" ")];
  });
  root.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  // In JupyterLab a letter is a command of the notebook (r makes the cell raw): a plain key pressed here is for the control alone.
  root.addEventListener("keydown", (event) => event.ctrlKey || event.metaKey || event.altKey || event.stopPropagation());
  addEventListener("beforeprint", () => root.querySelectorAll("details").forEach((part) => (part.open = true)));
})(document.currentScript.parentElement);
