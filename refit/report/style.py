"""The page's style sheet: the system's fonts, light and dark by what the reader's system says."""

CSS = """
:root {
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --soft: #5c6670; --line: #dfe3e8; --back: #eceff2;
  --accent: #2f6fde; --good: #1a7f4b; --info: #2f6fde; --warning: #9a6200; --error: #c42b31; --tint: 12%;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1317; --card: #181d23; --ink: #e6e9ed; --soft: #9aa4af; --line: #2b323a; --back: #262d35;
    --accent: #7aa7ff; --good: #4cc38a; --info: #7aa7ff; --warning: #e2a23b; --error: #ff7b80; --tint: 18%;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
}
header, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
.kind { margin: 0; color: var(--soft); font-size: 13px; letter-spacing: .04em; text-transform: uppercase; }
h1 { margin: 2px 0 12px; font-size: 28px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 14px; font-size: 19px; }
h3 { margin: 0 0 6px; font-size: 15px; overflow-wrap: anywhere; }
small { color: var(--soft); font-size: 12px; font-weight: 400; }
code { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; overflow-wrap: anywhere; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; padding-bottom: 18px; }
section {
  margin: 0 0 18px; padding: 20px; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
}
footer { padding-bottom: 32px; color: var(--soft); font-size: 13px; }
.badge {
  display: inline-block; padding: 1px 9px; border-radius: 99px; font-size: 12px; font-weight: 600; line-height: 1.6;
  vertical-align: middle; white-space: nowrap; color: var(--soft); background: var(--back);
}
.badge.good { color: var(--good); background: color-mix(in srgb, var(--good) var(--tint), transparent); }
.badge.info { color: var(--info); background: color-mix(in srgb, var(--info) var(--tint), transparent); }
.badge.warning { color: var(--warning); background: color-mix(in srgb, var(--warning) var(--tint), transparent); }
.badge.error { color: var(--error); background: color-mix(in srgb, var(--error) var(--tint), transparent); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 10px; margin-bottom: 16px; }
.tiles div { padding: 10px 14px; background: var(--page); border-radius: 8px; }
.tiles b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: 13px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin-bottom: 16px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
thead th { color: var(--soft); font-size: 12px; font-weight: 500; }
th:first-child { text-align: left; font-weight: 500; }
tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 110px; }
.told th:last-child { text-align: left; }
td.bar { width: 32%; min-width: 80px; }
.stages td.bar { width: 14%; }
.stages tbody th { min-width: 250px; }
td.names { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 180px; }
svg { display: block; }
.share { width: 100%; height: 8px; border-radius: 4px; }
.share .back { fill: var(--back); }
.dot { display: inline-block; width: 10px; height: 10px; margin-right: 7px; }
.chart, .heat { width: 100%; height: auto; }
.chart g { fill: var(--accent); }
.chart line { stroke: var(--line); }
.chart text { fill: var(--soft); font-size: 11px; }
.heat { background: var(--back); border-radius: 4px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 16px; align-items: start; }
.cards > * { max-width: 420px; }
.card { padding: 14px; border: 1px solid var(--line); border-radius: 8px; }
figure { margin: 0 0 12px; min-width: 0; }
figcaption { margin-top: 4px; color: var(--soft); font-size: 12px; overflow-wrap: anywhere; }
figcaption span { display: block; color: var(--ink); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 14px; }
.picture { width: 100%; height: auto; border-radius: 6px; background: var(--back); }
.picture rect, .picture circle { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; }
.picture .bad { stroke: #ff00c8; stroke-width: 3; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 12px; }
.fault { padding: 14px 0 4px; border-top: 1px solid var(--line); }
.fault:first-of-type { padding-top: 0; border-top: 0; }
.fault ul { margin: 0 0 12px; padding: 0; list-style: none; }
.fault li { padding: 2px 0; overflow-wrap: anywhere; }
.more, .advice { color: var(--soft); }
.advice { margin: 0 0 6px; font-size: 13px; }
.picture .truth { stroke: #fff; stroke-dasharray: 4 3; stroke-width: 1.5; }
.plot { width: 100%; height: auto; }
.plot line { stroke: var(--soft); }
.plot .grid { stroke: var(--line); }
.plot text { fill: var(--soft); font-size: 11px; }
.plot .curve { fill: none; stroke: var(--accent); stroke-width: 1.8; stroke-linejoin: round; }
.plot .interval { stroke: var(--accent); stroke-width: 1.2; opacity: .55; }
.plot .point { fill: var(--accent); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 16px; }
.plots > * { max-width: 520px; }
.matrix { width: auto; }
.matrix th, .matrix td { padding: 6px 12px; text-align: center; }
.matrix .cell.good { background: color-mix(in srgb, var(--good) calc(var(--share) * .6), transparent); }
.matrix .cell.bad { background: color-mix(in srgb, var(--error) calc(var(--share) * .8), transparent); }
.lead { margin: 0 0 12px; padding: 12px 14px; border-radius: 8px; background: var(--page); overflow-wrap: anywhere; }
.lead.error { background: color-mix(in srgb, var(--error) var(--tint), transparent); }
.lead p { margin: 0; }
.lead p + p { margin-top: 6px; }
pre {
  margin: 8px 0; padding: 10px 12px; overflow-x: auto; background: var(--page); border-radius: 8px;
  font: 12px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
}
details { margin: 8px 0; }
summary { cursor: pointer; color: var(--soft); }
.left { text-align: left; }
.words { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 220px; }
.best { font-weight: 600; color: var(--good); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 16px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; }
@media (max-width: 600px) {
  header, main, footer { padding-left: 12px; padding-right: 12px; }
  section { padding: 14px; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; }
  h1 { font-size: 22px; }
}
@media print { body { background: #fff; } section { break-inside: avoid; } nav { display: none; } }
"""
