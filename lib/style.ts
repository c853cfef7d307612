// How the report looks: light, dark, narrow, on paper. Colours have the contrast of WCAG AA on their ground, in both.

export const STYLE = `
:root { --ground: #f5f6f8; --paper: #fff; --text: #1b2330; --quiet: #4d586a; --line: #d5dae2; --link: #1a56b0; --good: #1b7742; --warning: #8f5b00; --failed: #b3202b; --unknown: #545f70; --curve: #3568b5; --tint: #e8eef8; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161c; --paper: #1a2029; --text: #e4e8ee; --quiet: #a5b0bf; --line: #333c49; --link: #8ab4f8; --good: #5bc489; --warning: #e3ab45; --failed: #ff8a86; --unknown: #a9b3c1; --curve: #7fa9ec; --tint: #232f43; } }
* { box-sizing: border-box; }
html { scroll-behavior: auto; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 84rem; padding: 1.25rem clamp(.75rem, 2.5vw, 2rem) 3rem; background: var(--ground); color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0; letter-spacing: -.01em; } h2 { font-size: 1.2rem; margin: 0 0 .6rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: 0 0 .3rem; } small { font-size: .84em; color: var(--quiet); } a { color: var(--link); }
a:focus-visible, [tabindex]:focus-visible, summary:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; } main:focus { outline: none; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: .5rem; background: var(--paper); padding: .5rem 1rem; z-index: 2; }
header p { color: var(--quiet); } section, footer { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem clamp(.8rem, 2vw, 1.4rem); margin: 1rem 0; overflow-wrap: anywhere; }
code { font: .86em/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; background: var(--tint); padding: .12em .4em; border-radius: 4px; -webkit-box-decoration-break: clone; box-decoration-break: clone; }
.tally { list-style: none; display: flex; flex-wrap: wrap; gap: .6rem; padding: 0; margin: .8rem 0 0; } .tally li { background: var(--paper); border: 1px solid var(--line); border-left: 4px solid var(--c); border-radius: 8px; padding: .35rem .9rem; } .tally b { font-size: 1.35rem; margin-right: .35rem; }
.good { --c: var(--good); } .warning { --c: var(--warning); } .failed { --c: var(--failed); } .unknown { --c: var(--unknown); }
.lamp { color: var(--c); font-weight: 600; font-size: .95rem; white-space: nowrap; } .lampsign { vertical-align: -1.5px; margin-right: .35rem; fill: var(--c); } .lampsign .in { fill: none; stroke: var(--paper); stroke-width: 1.7; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; } th, td { text-align: left; vertical-align: top; padding: .55rem .7rem .55rem 0; border-top: 1px solid var(--line); } thead th { border-top: 0; color: var(--quiet); font-weight: 600; font-size: .85rem; padding-top: 0; } tbody th { font-weight: 600; }
.fleet td small { display: block; } .fleet tbody th { min-width: 11rem; } .fleet tbody th a { display: block; } .fleet td[data-head]:nth-of-type(2) { min-width: 15rem; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--quiet); font-size: 10px; font-family: inherit; } .fleet th svg { display: block; margin-top: .35rem; width: 11rem; }
.n-good { fill: var(--good); } .n-warning { fill: var(--warning); } .n-failed { fill: none; stroke: var(--failed); stroke-width: 2.6; } .n-missing { fill: none; stroke: var(--quiet); stroke-width: 1; }
.sign { width: 11px; height: 11px; vertical-align: -1px; } .axis { stroke: var(--line); fill: none; } .bars { fill: var(--curve); } .area { fill: var(--tint); } .line { fill: none; stroke: var(--curve); stroke-width: 1.8; }
.wide { overflow-x: auto; } .wide > svg { min-width: 40rem; max-width: none; width: min(100%, 52rem); } .charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; margin-top: 1rem; } figure { margin: 0; } figcaption { font-size: .84rem; color: var(--quiet); } figcaption b { display: block; color: var(--text); font-size: .93rem; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--link); } .of { color: var(--quiet); }
.how dt { font-size: .88rem; color: var(--quiet); } .how dd { margin: 0 0 .5rem; } .archives { min-width: 46rem; } .archives td p { margin: 0; } .archives th { width: 15rem; } .why { margin: 0 0 .6rem; padding-left: 1.2rem; } .legend { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; padding: 0; } .back { margin-top: .8rem; }
@media (max-width: 62rem) and (not print) { .fleet thead { position: absolute; left: -99rem; } .fleet, .fleet tbody, .fleet tr, .fleet td, .fleet tbody th { display: block; width: 100%; } .fleet tr { border-top: 3px solid var(--c); padding: .7rem 0; } .fleet td, .fleet tbody th { border: 0; padding: .18rem 0; }
  .fleet td { display: grid; grid-template-columns: 8.5rem 1fr; gap: .6rem; } .fleet td::before { content: attr(data-head); color: var(--quiet); font-size: .85rem; } .fleet td:first-child { display: block; } .fleet td:first-child::before { content: none; } .fleet td small { display: inline; } .fleet th svg { width: 100%; max-width: 22rem; } }
@media (max-width: 30rem) { .fleet td { grid-template-columns: 6.5rem 1fr; } body { font-size: 14px; } }
@media print { @page { size: A4; margin: 12mm 10mm; } :root { --ground: #fff; --paper: #fff; --text: #000; --quiet: #444; --line: #bbb; --link: #000; --good: #1b7742; --warning: #8f5b00; --failed: #b3202b; --unknown: #545f70; --curve: #3568b5; --tint: #eee; } body { font-size: 9.5px; padding: 0; max-width: none; } section, footer { border: 0; padding: 0; border-radius: 0; } .server { break-before: page; }
  tr, figure, .wide > svg { break-inside: avoid; } .wide { overflow: visible; } .wide > svg { min-width: 0; width: 100%; } .archives, .fleet tbody th, .fleet td[data-head]:nth-of-type(2) { min-width: 0; } .archives th { width: 22%; } .fleet th svg { width: 7rem; } .charts { grid-template-columns: repeat(3, 1fr); } .skip, .back, details { display: none; } a { text-decoration: none; } * { -webkit-print-color-adjust: exact; print-color-adjust: exact; } thead { display: table-header-group; } }
`;
