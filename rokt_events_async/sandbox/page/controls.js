/* How the sandbox behaves: faults for the next requests and at a rate, latency, credentials, forms, the record. */
import { $, h, icon, many, narrow, setText, span, tell, toast } from './text.js';
import { state } from './store.js';
import { control } from './stream.js';
import { faultOf } from './request.js';

const MOST = 999;
const SLOWEST = 30000; // ms, the end of the latency's slider
let picked = '503';

export const faultText = (name) => (faultOf(name) || { says: `Status ${name}, empty body` }).says;

/** `[503, 503, cut]` as `[[503, 2], [cut, 1]]`. */
function runs(script) {
  const out = [];
  for (const name of script) {
    const last = out[out.length - 1];
    if (last && last[0] === name) last[1]++;
    else out.push([name, 1]);
  }
  return out;
}

// The slider of the latency is not linear: 0 to 30 s, fine at the start.
function toMs(value) {
  const ms = SLOWEST * (value / 100) ** 3;
  const step = ms < 100 ? 5 : ms < 1000 ? 20 : 500;
  return Math.round(ms / step) * step;
}
const fromMs = (ms) => Math.min(100, Math.round(100 * Math.cbrt(ms / SLOWEST)));
const showLatency = (from, to) =>
  setText($('lat-out'), from === to ? span(from) : `${span(from)} to ${span(to)}`);

export function showSettings() {
  const { settings } = state;
  const armed = settings.script.length;
  const sum = settings.rates.reduce((all, x) => all + x.rate, 0);
  showArmed(runs(settings.script), armed);
  showRates(settings.rates);
  setText($('rate-sum'), sum ? `${percent(sum)} in all` : '');
  const [from, to] = settings.latency;
  if (!$('lat-min').matches(':active')) $('lat-min').value = fromMs(from);
  if (!$('lat-max').matches(':active')) $('lat-max').value = fromMs(to);
  showLatency(from, to);
  $('creds').checked = settings.credentials;
  showEchoes(settings.echo, settings.isOther);
  const odd = [
    armed && `${armed} armed`,
    sum && 'rates on',
    to && 'slow',
    (settings.echo.length || settings.isOther) && 'form changed',
    !settings.credentials && 'all 401',
  ].filter(Boolean);
  const text = odd.length ? odd[0] + (odd.length > 1 ? ` + ${odd.length - 1}` : '') : 'Normal';
  setText($('desk-state'), text);
  $('desk-state').title = odd.join(', ');
  $('desk-state').classList.toggle('on', odd.length > 0);
  $('dock-badge').hidden = !armed;
  setText($('dock-badge'), String(armed));
  $('calm').disabled = !odd.length;
}

/** Gives the focus back to what replaced a control, or to the one beside it. */
function refocus(box, label, other) {
  if (!label) return;
  const again = [...box.querySelectorAll('[aria-label]')].find(
    (el) => el.getAttribute('aria-label') === label,
  );
  (again || other).focus({ preventScroll: true });
}

function showArmed(script, armed) {
  const queue = $('queue');
  const held = queue.contains(document.activeElement) && document.activeElement.getAttribute('aria-label');
  $('armed').hidden = !armed;
  const words = script.map(([name, n]) => (n > 1 ? `${n} × ${name}` : name)).join(', then ');
  if (armed)
    setText($('armed-text'), `Next ${armed === 1 ? 'request fails' : `${armed} requests fail`}: ${words}`);
  const without = (i) => script.filter((_, j) => j !== i).flatMap(([name, n]) => Array(n).fill(name));
  $('queue').replaceChildren(
    ...script.map(([name, n], i) => {
      const act = { click: () => control('script', { script: without(i) }) };
      const button = h(
        'button',
        { type: 'button', 'aria-label': `Disarm ${n} × ${name}`, on: act },
        icon('bad'),
      );
      return h('li', {}, h('span', { class: 'mono' }, `${n} × ${name}`), button);
    }),
  );
  refocus(queue, held, $('arm'));
}

const percent = (rate) => `${Number((rate * 100).toPrecision(3))} %`;

function showRates(rates) {
  const box = $('rates');
  const held = box.contains(document.activeElement) && document.activeElement.getAttribute('aria-label');
  if (box.querySelector('input:active') && box.dataset.faults === rates.map((x) => x.fault).join()) return; // in use
  box.dataset.faults = rates.map((x) => x.fault).join();
  const none = h('p', { class: 'none' }, 'None: every other request is answered truly.');
  box.replaceChildren(...(rates.length ? rates.map(rateRow) : [none]));
  refocus(box, held, $('rate-add'));
}

function rateRow({ fault, rate }) {
  const out = h('span', { class: 'rate-out' }, percent(rate));
  const range = h('input', {
    type: 'range',
    min: 0,
    max: 100,
    value: Math.round(rate * 100),
    'aria-label': `Rate of ${fault} in per cent`,
  });
  range.addEventListener('input', () => setText(out, `${range.value} %`));
  range.addEventListener('change', async () => {
    const rates = state.settings.rates.map((x) =>
      x.fault === fault ? { fault, rate: range.value / 100 } : x,
    );
    if (!(await control('settings', { rates }))) showRates(state.settings.rates);
  });
  const rest = () => control('settings', { rates: state.settings.rates.filter((x) => x.fault !== fault) });
  const button = h(
    'button',
    { type: 'button', 'aria-label': `Remove ${fault}`, on: { click: rest } },
    icon('bad'),
  );
  return h('div', { title: faultText(fault) }, h('span', { class: 'mono' }, fault), out, button, range);
}

function showEchoes(on, isOther) {
  const box = $('echoes');
  setText($('echo-sum'), [...on, isOther && "the program's own"].filter(Boolean).join(', ') || 'default');
  if (!box.children.length) {
    const change = () =>
      control('settings', { echo: [...box.querySelectorAll(':checked')].map((check) => check.value) });
    const row = (x) =>
      h(
        'label',
        {},
        h('input', { type: 'checkbox', value: x.name, on: { change } }),
        h('span', { class: 'mono' }, x.name),
        h('span', { class: 'hint' }, x.says),
      );
    box.append(...state.hello.echoes.map(row));
  }
  for (const check of box.querySelectorAll('input')) check.checked = on.includes(check.value);
}

const asked = () => Math.max(1, Number($('n').value) || 1);

export function showPicked() {
  const fault = faultOf(picked);
  setText($('fault-name'), picked);
  setText(
    $('fault-says'),
    `${faultText(picked)}.${fault && fault.takes === 'yes' ? ' The events are taken.' : ''}`,
  );
  setText($('arm-text'), asked() === 1 ? 'Fail the next request' : `Fail the next ${asked()} requests`);
}

export function pickFault() {
  openPop($('fault-pick'), (name) => {
    picked = name;
    showPicked();
    $('arm').focus();
  });
}

// The list of faults.

let popDone = null;
let popAt = 0;

function openPop(button, done) {
  const pop = $('pop');
  popDone = done;
  pop.button = button;
  pop.hidden = false;
  button.setAttribute('aria-expanded', 'true');
  $('pop-q').value = '';
  fillPop('');
  const box = button.getBoundingClientRect();
  const side = $('desk').getBoundingClientRect();
  const hasRoom = innerWidth - side.right > pop.offsetWidth + 16; // beside the controls, so that they stay in sight
  const left = hasRoom ? side.right + 6 : Math.max(8, Math.min(box.left, innerWidth - pop.offsetWidth - 8));
  const top = Math.min(hasRoom ? box.top - 11 : box.bottom + 4, innerHeight - pop.offsetHeight - 8);
  pop.style.left = `${left}px`;
  pop.style.top = `${Math.max(8, top)}px`;
  $('pop-q').focus();
}

export function closePop(focus = true) {
  const pop = $('pop');
  if (pop.hidden) return;
  pop.hidden = true;
  pop.button.setAttribute('aria-expanded', 'false');
  if (focus) pop.button.focus();
}

function fillPop(text) {
  const words = text.trim().toLowerCase();
  const fits = (fault) => `${fault.name} ${fault.says} ${fault.group}`.toLowerCase().includes(words);
  let found = state.hello.faults.filter((fault) => !words || fits(fault));
  if (/^[345]\d\d$/.test(words) && !found.some((fault) => fault.name === words)) {
    found = [{ name: words, group: 'Error status', says: 'This status, empty body', takes: 'no' }, ...found];
  }
  const box = $('pop-list');
  box.replaceChildren();
  let group = '';
  found.forEach((fault, i) => {
    if (fault.group !== group) box.append(h('div', { class: 'grp', role: 'presentation' }, fault.group));
    group = fault.group;
    const take = () => {
      closePop();
      popDone(fault.name);
    };
    const takes = { yes: 'taken', no: 'not taken', told: 'told' }[fault.takes];
    const attributes = {
      class: 'opt',
      role: 'option',
      id: `opt-${i}`,
      'aria-selected': 'false',
      on: { click: take },
    };
    const words_ = [
      h('span', { class: 'mono' }, fault.name),
      h('span', { class: `takes ${fault.takes}` }, takes),
      h('span', { class: 'hint' }, fault.says),
    ];
    box.append(h('div', attributes, ...words_));
  });
  if (!found.length)
    box.append(h('p', { class: 'void' }, 'No such fault. A status from 300 to 599 is one too.'));
  pointPop(
    words
      ? 0
      : Math.max(
          0,
          found.findIndex((fault) => fault.name === picked),
        ),
  );
}

function pointPop(i) {
  const options = $('pop-list').querySelectorAll('.opt');
  if (!options.length) {
    $('pop-q').removeAttribute('aria-activedescendant');
    return;
  }
  popAt = (i + options.length) % options.length;
  options.forEach((option, j) => option.setAttribute('aria-selected', j === popAt));
  $('pop-q').setAttribute('aria-activedescendant', options[popAt].id);
  options[popAt].scrollIntoView({ block: 'nearest' });
}

// The desk on a screen that is too narrow for it.

function markDock(name) {
  for (const button of document.querySelectorAll('[data-dock]')) {
    if (button.dataset.dock === name) button.setAttribute('aria-current', 'page');
    else button.removeAttribute('aria-current');
  }
}

export function openDesk() {
  $('desk').classList.add('open');
  markDock('desk');
  if (!narrow()) $('desk-close').focus();
}

export function closeDesk() {
  $('desk').classList.remove('open');
  markDock(state.view);
}

// Wiring.

const on = (id, type, act) => $(id).addEventListener(type, act);

/** The bounds with one of them moved; the other stays what it was, unless it has to give way. */
function bounds(moved) {
  const [from, to] = state.settings.latency;
  const ms = toMs(Number(moved.value));
  return moved === $('lat-min') ? [ms, Math.max(ms, to)] : [Math.min(ms, from), ms];
}

async function calm() {
  const { script, isOther, ...rest } = state.settings;
  if (!(await control('script', { script: [] }))) return;
  if (!(await control('settings', { rates: [], latency: [0, 0], echo: [], credentials: true }))) return;
  toast('Behaves normally', async () => {
    await control('script', { script });
    await control('settings', rest);
  });
}

let sure = 0;

function clear() {
  const button = $('clear');
  const ask = 'Clear record';
  if (Date.now() - sure > 4000) {
    sure = Date.now();
    button.textContent = 'Sure? Clear';
    setTimeout(() => setText(button, ask), 4000);
    return;
  }
  sure = 0;
  setText(button, ask);
  control('clear', {});
}

export function wireControls() {
  on('n-less', 'click', () => {
    $('n').value = Math.max(1, asked() - 1);
    showPicked();
  });
  on('n-more', 'click', () => {
    $('n').value = Math.min(MOST, asked() + 1);
    showPicked();
  });
  on('n', 'input', () => {
    $('n').value = $('n').value.replace(/\D/g, '').slice(0, 3);
    showPicked();
  });
  on('fault-pick', 'click', pickFault);
  on('arm', 'click', async () => {
    const n = asked();
    if (await control('fail-next', { fault: picked, count: n }))
      tell(`${many(n, 'request')} armed to fail with ${picked}`);
  });
  on('disarm', 'click', async () => {
    const { script } = state.settings;
    if (await control('script', { script: [] })) toast('Disarmed', () => control('script', { script }));
  });
  on('rate-add', 'click', () =>
    openPop($('rate-add'), (fault) => {
      const { rates } = state.settings;
      if (!rates.some((x) => x.fault === fault))
        control('settings', { rates: [...rates, { fault, rate: 0.05 }] });
    }),
  );
  for (const id of ['lat-min', 'lat-max']) {
    on(id, 'input', (e) => showLatency(...bounds(e.target)));
    on(id, 'change', (e) => control('settings', { latency: bounds(e.target) }));
  }
  on('creds', 'change', () => control('settings', { credentials: $('creds').checked }));
  on('calm', 'click', calm);
  on('clear', 'click', clear);
  on('desk-open', 'click', openDesk);
  on('desk-close', 'click', () => {
    closeDesk();
    $('desk-open').focus();
  });
  on('pop-q', 'input', () => fillPop($('pop-q').value));
  on('pop-q', 'keydown', (e) => {
    if (e.key === 'ArrowDown' || e.key === 'ArrowUp') {
      e.preventDefault();
      pointPop(popAt + (e.key === 'ArrowDown' ? 1 : -1));
    } else if (e.key === 'Enter') {
      e.preventDefault();
      const option = $('pop-list').querySelector('[aria-selected="true"]');
      if (option) option.click();
    } else if (e.key === 'Tab') closePop();
  });
  document.addEventListener('pointerdown', (e) => {
    const pop = $('pop');
    if (!pop.hidden && !pop.contains(e.target) && !pop.button.contains(e.target)) closePop(false);
  });
}

export { markDock };
