"use strict";
(() => {
  const root = document.documentElement, main = document.querySelector("main");
  const smoothing = document.getElementById("smoothing"), logarithmic = document.getElementById("logarithmic");
  const filter = document.getElementById("filter"), legend = document.getElementById("legend");
  const hidden = new Set(); // numbers of the groups that are not shown
  const property = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // Colours are names of properties of the page's style, so that they follow light and dark.
  const coloured = (value) => {
    if (typeof value === "string") return value.startsWith("var(--") ? property(value.slice(4, -1)) : value;
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, coloured(each)]));
    return value;
  };

  // Exponential mean with the weight of the past, corrected for its start.
  const smooth = (values, weight) => {
    let sum = 0, count = 0;
    return values.map((value) => {
      if (value === null) return null;
      sum = weight * sum + (1 - weight) * value;
      count = weight * count + (1 - weight);
      return sum / count;
    });
  };

  const line = (series, y, more) => ({
    type: "scatter", mode: "lines", x: series.x, y, name: series.name, line: { color: coloured(series.colour), width: 2, dash: series.dash },
    connectgaps: false, hovertemplate: "%{y:.4~g}<extra>%{fullData.name}</extra>", showlegend: false, ...more,
  });

  const edge = (series, y, more) => line(series, y, { line: { width: 0 }, hoverinfo: "skip", hovertemplate: null, ...more });

  const curves = (figure) => {
    const traces = [];
    for (const series of figure.series) {
      if (hidden.has(series.group)) continue;
      const weight = figure.smooth && series.y.length > 40 ? Number(smoothing.value) : 0;
      const through = (values) => (weight ? smooth(values, weight) : values);
      if (series.low) {
        const fill = coloured(series.colour) + "33";
        traces.push(edge(series, through(series.low)), edge(series, through(series.high), { fill: "tonexty", fillcolor: fill }));
      } else if (weight) {
        traces.push(line(series, series.y, { opacity: 0.25, hoverinfo: "skip", hovertemplate: null, line: { color: coloured(series.colour), width: 1 } }));
      }
      const mode = figure.points ? "markers" : series.x.length < 25 ? "lines+markers" : "lines";
      const marker = { size: 6, color: coloured(series.colour) };
      traces.push(line(series, through(series.y), { mode, marker, showlegend: Boolean(figure.legend) }));
    }
    return traces;
  };

  const axis = (more) => ({
    gridcolor: property("--grid"), zeroline: false, linecolor: property("--line"), automargin: true, ticklabeloverflow: "allow", ...more,
  });

  const layout = (figure, narrow) => {
    const drawn = figure.kind === "curves", extra = coloured(figure.layout || {});
    const percent = figure.percent ? { tickformat: ".2~%", hoverformat: ".2~%" } : { exponentformat: "power" };
    const type = drawn && logarithmic.checked ? { type: "log", dtick: "D1", nticks: 5 } : {};
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", uirevision: "kept", autosize: true, bargap: 0.35, ...extra,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: property("--soft") },
      margin: { l: 44, r: 12, t: 6, b: 24 }, hovermode: drawn ? "x unified" : "closest",
      hoverlabel: { bgcolor: property("--card"), bordercolor: property("--line"), font: { color: property("--ink") } },
      showlegend: !drawn || Boolean(figure.legend), legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, traceorder: "normal", font: { size: narrow ? 10 : 12 } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: property("--soft"), activecolor: property("--ink") },
      xaxis: axis({ nticks: 6, ...(drawn ? { title: { text: "step", standoff: 4, font: { size: 11 } } } : {}), ...extra.xaxis }), yaxis: axis({ nticks: 5, ...(drawn ? { ...percent, ...type } : {}), ...extra.yaxis }),
    };
  };

  const draw = async (plot) => {
    const figure = JSON.parse(plot.parentElement.querySelector("script").textContent);
    const data = figure.kind === "curves" ? curves(figure) : coloured(figure.data);
    const buttons = [["zoom2d", "pan2d", "resetScale2d", "toImage"]], bar = matchMedia("(hover: hover)").matches ? "hover" : false;
    const settings = { displaylogo: false, responsive: true, displayModeBar: bar, modeBarButtons: buttons };
    await Plotly.react(plot, data, layout(figure, plot.clientWidth < 500), settings);
    plot.dataset.drawn = "";
  };

  const visible = (plot) => plot.offsetParent !== null && plot.clientWidth > 0;

  // Every figure that is not folded up, one after another, so that the page answers meanwhile.
  let turn = 0;
  const drawAll = async () => {
    const mine = ++turn;
    delete root.dataset.ready;
    for (const plot of document.querySelectorAll(".plot")) {
      if (mine !== turn) return;
      if (visible(plot)) await draw(plot);
      else delete plot.dataset.drawn;
      await new Promise((resume) => setTimeout(resume));
    }
    root.dataset.ready = "";
  };

  const choose = () => {
    let wanted;
    try { wanted = new RegExp(filter.value, "i"); } catch { return; }
    for (const panel of document.querySelectorAll(".panel")) panel.hidden = !wanted.test(panel.dataset.name + " " + panel.querySelector("b").textContent);
    if (filter.value) for (const more of document.querySelectorAll("details.more:has(.panel:not([hidden]))")) more.open = true;
    drawAll();
  };

  const place = () => {
    document.querySelector("nav").replaceChildren(...document.getElementById("links").childNodes);
    const chips = document.getElementById("chips");
    legend.replaceChildren(...(chips.children.length > 1 ? chips.children : []));
    for (const chip of legend.children) {
      const number = Number(chip.dataset.group);
      const press = () => chip.setAttribute("aria-pressed", String(!hidden.has(number)));
      press();
      chip.addEventListener("click", () => {
        hidden.has(number) ? hidden.delete(number) : hidden.add(number);
        press();
        drawAll();
      });
    }
  };

  // A page that a server sends: what is new replaces what is old, and figures keep their zoom.
  const refresh = async () => {
    const status = document.getElementById("live");
    try {
      const answer = await fetch("body?seen=" + root.dataset.live, { cache: "no-store" });
      if (answer.status === 200) {
        const next = new DOMParser().parseFromString(await answer.text(), "text/html").body;
        const open = new Set([...main.querySelectorAll("details[open] > summary")].map((each) => each.closest("section").id + each.textContent));
        const drawn = new Map([...main.querySelectorAll(".panel")].map((each) => [each.closest("section").id + each.dataset.name, each.querySelector(".plot")]));
        for (const summary of next.querySelectorAll("details > summary"))
          if (open.has(summary.closest("section").id + summary.textContent)) summary.parentElement.open = true;
        for (const panel of next.querySelectorAll(".panel")) {
          const old = drawn.get(panel.closest("section").id + panel.dataset.name), plot = panel.querySelector(".plot");
          if (old) { old.setAttribute("style", plot.getAttribute("style") || ""); plot.replaceWith(old); }
        }
        main.replaceChildren(...next.childNodes);
        root.dataset.live = answer.headers.get("X-Signature");
        place();
        choose();
      }
      status.textContent = answer.ok || answer.status === 304 ? "live" : "the server answers " + answer.status;
    } catch {
      status.textContent = "the server does not answer";
    }
    setTimeout(refresh, 3000);
  };

  place();
  drawAll();
  smoothing.addEventListener("input", drawAll);
  logarithmic.addEventListener("change", drawAll);
  filter.addEventListener("input", choose);
  document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  document.addEventListener("toggle", (event) => {
    if (event.target.open) event.target.querySelectorAll(".plot:not([data-drawn])").forEach(draw);
  }, true);
  if (root.dataset.live) setTimeout(refresh, 3000);
})();
