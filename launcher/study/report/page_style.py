"""The look of the report: one column on a telephone, up to three on a screen, light and dark."""

STYLE = """
:root { --ink: #1b1e23; --quiet: #5b6270; --grid: #dde0e5; --paper: #ffffff; --page: #f5f6f8;
  --warn: #fff4d6; --warn-edge: #b07a00; --link: #0060a8;
  --c0: #0072b2; --c1: #c65000; --c2: #008462; --c3: #b0559b; --c4: #9a6b00; --c5: #2b8cc4; --c6: #7a3e9d;
  --c7: #4d4d4d; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaee; --quiet: #a7afbd; --grid: #363b45;
  --paper: #1c1f25; --page: #131519; --warn: #33290f; --warn-edge: #d9a520; --link: #74b9f0;
  --c0: #5db3ec; --c1: #f5914f; --c2: #35c49c; --c3: #e492d0; --c4: #dcb04a; --c5: #8fd0f5; --c6: #bd92e0;
  --c7: #b9b9b9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 26px; line-height: 1.2; margin: 4px 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 36px 0 4px; }
h3 { font-size: 15px; margin: 0 0 6px; }
p { margin: 4px 0 10px; max-width: 76ch; }
a { color: var(--link); }
.quiet, figcaption, dt, .files { color: var(--quiet); }
.panel { background: var(--paper); border: 1px solid var(--grid); border-radius: 8px; padding: 14px 16px; }
.note { background: var(--warn); border-left: 4px solid var(--warn-edge); padding: 8px 12px; margin: 10px 0;
  border-radius: 4px; max-width: 100%; }
.head { display: grid; gap: 14px; grid-template-columns: minmax(0, 1fr); margin-top: 14px; }
@media (min-width: 900px) { .head { grid-template-columns: minmax(0, 5fr) minmax(0, 4fr); } }
.facts { margin: 0; padding-left: 20px; }
.facts li { margin: 0 0 8px; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: minmax(0, 1fr); margin: 0; font-size: 14px; }
@media (min-width: 560px) { dl { grid-template-columns: fit-content(230px) minmax(0, 1fr); gap: 5px 14px; } }
dt { overflow-wrap: anywhere; }
dd { margin: 0 0 4px; overflow-wrap: anywhere; }
.charts { display: grid; gap: 14px; grid-template-columns: minmax(0, 1fr); align-items: start;
  margin: 12px 0; }
@media (min-width: 760px) { .charts { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media (min-width: 1120px) { .charts.three { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
figure { margin: 0; padding: 12px 12px 10px; background: var(--paper); border: 1px solid var(--grid);
  border-radius: 8px; min-width: 0; }
figure svg { display: block; width: 100%; max-width: 470px; height: auto; margin: 0 auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { font-size: 13px; line-height: 1.4; margin-top: 6px; }
.files { font-size: 13px; white-space: nowrap; }
.scroll { overflow-x: auto; border: 1px solid var(--grid); border-radius: 8px; background: var(--paper);
  margin: 6px 0 16px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px; border-bottom: 1px solid var(--grid); white-space: nowrap;
  vertical-align: top; }
td.long { white-space: normal; min-width: 260px; }
td.number, th.number { text-align: right; }
tr:last-child td { border-bottom: 0; }
th { color: var(--quiet); font-weight: 600; }
pre { overflow-x: auto; margin: 8px 0 0; font-size: 12.5px; line-height: 1.45; }
summary { cursor: pointer; overflow-wrap: anywhere; font-size: 14px; margin-top: 8px; }
ul.why { color: var(--quiet); font-size: 14px; padding-left: 20px; margin: 4px 0; overflow-wrap: anywhere; }
"""
