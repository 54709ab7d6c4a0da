// A prediction of qlab in JupyterLab: the control has the choices, a name for screen readers, and its keys, which are else commands there.
(function (root) {
  const area = root.closest(".jp-OutputArea");
  if (!area) return;
  root.querySelector(".qlab-choices").hidden = true;
  const question = root.querySelector(".qlab-question").textContent;
  const name = () => {
    for (const group of area.querySelectorAll(".widget-radio-box")) {
      group.setAttribute("role", "radiogroup");
      group.setAttribute("aria-label", question);
    }
    for (const handle of area.querySelectorAll(".noUi-handle")) handle.setAttribute("aria-label", question);
  };
  name();
  new MutationObserver(name).observe(area, { childList: true, subtree: true });
  area.addEventListener("keydown", (event) => {
    const runs = event.ctrlKey || event.metaKey || event.altKey || (event.shiftKey && event.key === "Enter");
    if (!runs) event.stopPropagation();
  });
})(document.currentScript.parentElement);
