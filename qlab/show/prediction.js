// A prediction of qlab in JupyterLab: the control has the choices, a name for screen readers, and its keys, which are else commands there.
(function (root) {
  const area = root.closest(".jp-OutputArea");
  if (!area) return;
  root.querySelector(".qlab-choices").hidden = true;
  const question = root.querySelector(".qlab-question").textContent;
  const name = () => {
    const control = root.closest(".jp-OutputArea-child")?.nextElementSibling;
    const parts = control ? [...control.querySelectorAll(".widget-radio-box, .noUi-handle")] : [];
    for (const part of parts) {
      if (part.matches(".widget-radio-box")) part.setAttribute("role", "radiogroup");
      part.setAttribute("aria-label", question);
    }
  };
  name();
  new MutationObserver(name).observe(area, { childList: true, subtree: true });
  area.addEventListener("keydown", (event) => {
    const runs = event.ctrlKey || event.metaKey || event.altKey || (event.shiftKey && event.key === "Enter");
    if (!runs) event.stopPropagation();
  });
})(document.currentScript.parentElement);
