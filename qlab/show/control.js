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
  addEventListener("beforeprint", () => root.querySelectorAll("details").forEach((part) => (part.open = true)));
})(document.currentScript.parentElement);
