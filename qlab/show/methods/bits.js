// The bits of a weight: a button each, which turns it. What the bits say is what qlab/workbook/drawn/bits.py says of them.
(function (root) {
  const { weights, words } = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const rows = [...root.querySelectorAll(".qlab-format")];
  const select = root.querySelector("select");
  const bits = (row) => [...row.querySelectorAll("[role=toolbar] button")];

  const signed = (text) => String(text).replace("-", "−");
  const number = (value, digits = 5) => {
    if (Number.isNaN(value)) return words.nan;
    if (!Number.isFinite(value)) return (value < 0 ? "−" : "") + words.infinity;
    const size = Math.abs(value);
    if (size === 0 || (size >= 1e-4 && size < 1e5)) return signed(Number(value.toPrecision(digits)));
    const [front, power] = value.toExponential(digits - 1).split("e");
    return `${signed(Number(front))} × 10^${signed(Number(power))}`;
  };

  const decoded = (text, format) => {
    if (!format.exponent) {
      const value = (parseInt(text, 2) - format.zero) * format.scale;
      return [value, `(${parseInt(text, 2)} − ${format.zero}) × ${number(format.scale)} = ${number(value)}`];
    }
    const sign = text[0] === "1" ? -1 : 1;
    const exponent = parseInt(text.slice(1, 1 + format.exponent), 2);
    const mantissa = parseInt(text.slice(1 + format.exponent), 2);
    const highest = 2 ** format.exponent - 1;
    const whole = exponent ? 1 : 0;
    const power = Math.max(exponent, 1) - 2 ** (format.exponent - 1) + 1;
    const factor = whole + mantissa / 2 ** format.mantissa;
    let value = sign * factor * 2 ** power * format.scale;
    if (exponent === highest && (format.finite ? mantissa === 2 ** format.mantissa - 1 : mantissa)) value = NaN;
    else if (exponent === highest && !format.finite) value = sign * Infinity;
    if (!Number.isFinite(value)) return [value, number(value)];
    const scale = format.finite ? ` × ${number(format.scale)}` : "";
    return [value, `${signed(sign)} × 2^${signed(power)} × ${number(factor)}${scale} = ${number(value)}`];
  };

  // What stays as it was is not written again: a screen reader would say it once more.
  const write = (place, text) => place.textContent === text || (place.textContent = text);
  const say = () => {
    const { weight, formats } = weights[select.value];
    let worst = [-1, "", ""];
    rows.forEach((row, place) => {
      const text = bits(row).map((bit) => bit.textContent).join("");
      const [value, said] = decoded(text, formats[place]);
      const off = Number.isNaN(value) ? Infinity : Math.abs(value - weight);
      const percent = (100 * off) / Math.abs(weight);
      const error = Number.isFinite(percent) ? `${number(percent, 2)} %` : words.unbound;
      write(row.querySelector("output"), `${said}; ${words.error} ${error}`);
      if (off > worst[0]) worst = [off, row.dataset.format, error];
    });
    const finding = words.finding.replace("{weight}", number(weight)).replace("{format}", worst[1]).replace("{error}", worst[2]);
    write(root.querySelector(".qlab-finding strong"), finding);
  };

  const put = (bit, text, changed) => {
    bit.textContent = text;
    bit.setAttribute("aria-pressed", text === "1");
    bit.setAttribute("aria-label", bit.getAttribute("aria-label").replace(/.$/, text));
    bit.classList.toggle("changed", changed);
  };
  const store = () => {
    rows.forEach((row, place) => bits(row).forEach((bit, at) => put(bit, weights[select.value].formats[place].bits[at], false)));
    say();
  };
  select.addEventListener("input", store);
  root.querySelector(".qlab-controls button").addEventListener("click", store);
  rows.forEach((row, place) => {
    const bar = row.querySelector("[role=toolbar]");
    bar.addEventListener("click", (event) => {
      const at = bits(row).indexOf(event.target);
      if (at < 0) return;
      const turned = event.target.textContent === "1" ? "0" : "1";
      put(event.target, turned, turned !== weights[select.value].formats[place].bits[at]);
      say();
    });
    // One stop of the tab key for each format; the arrows go from bit to bit.
    bar.addEventListener("keydown", (event) => {
      const every = bits(row);
      const from = every.indexOf(document.activeElement);
      const to = { ArrowRight: from + 1, ArrowLeft: from - 1, Home: 0, End: every.length - 1 }[event.key];
      if (to === undefined || !every[to]) return;
      event.preventDefault();
      every.forEach((bit) => (bit.tabIndex = -1));
      every[to].tabIndex = 0;
      every[to].focus();
    });
  });
  // In JupyterLab a letter is a command of the notebook: a plain key pressed here is for the control alone.
  root.addEventListener("keydown", (event) => event.ctrlKey || event.metaKey || event.altKey || event.stopPropagation());
})(document.currentScript.parentElement);
