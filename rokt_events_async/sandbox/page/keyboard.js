/* The keyboard, and its help. */
import { $, h, narrow, recall, remember } from './text.js';
import { app, filtered, setSearch, state, store } from './store.js';
import { copyAs } from './request.js';
import { closeDesk, closePop, openDesk, pickFault } from './controls.js';
import { nextTheme } from './theme.js';

const HELP = [
  ['j / k', 'Older / newer, also ↓ ↑'],
  ['Enter', 'Open what is selected'],
  ['Esc', 'Close, then clear the search'],
  ['/', 'Search'],
  ['p', 'Pause or resume'],
  ['1 / 2', 'Requests / sessions'],
  ['f', 'Fail the next requests'],
  ['c', 'Copy as curl'],
  ['y', 'Copy as test'],
  ['t', 'Theme'],
  ['?', 'This help'],
];
for (const [keys, text] of HELP) {
  const names = keys === '/' ? ['/'] : keys.split(' / ');
  const shownKeys = names.flatMap((name, i) => (i ? [' ', h('kbd', {}, name)] : [h('kbd', {}, name)]));
  $('help-keys').append(h('dt', {}, ...shownKeys), h('dd', {}, text));
}
$('help-open').addEventListener('click', () => $('help').showModal());
$('help-close').addEventListener('click', () => $('help').close());
$('keys-on').checked = recall('keys') !== 'off';
$('keys-on').addEventListener('change', () => remember('keys', $('keys-on').checked ? 'on' : 'off'));

function escape() {
  if (!$('pop').hidden) closePop();
  else if ($('desk').classList.contains('open')) {
    closeDesk();
    $(narrow() ? 'list' : 'desk-open').focus();
  } else if (document.activeElement === $('q') && $('q').value) {
    $('q').value = '';
    setSearch('');
    app.rebuild();
  } else if (document.activeElement === $('q')) $('list').focus();
  else if (!$('detail').hidden && (state.view === 'requests' || narrow())) app.closeDetail();
  else if (filtered()) app.clearFilters();
}

const chosen = (form) => {
  const r = store.byNumber.get(state.chosen);
  if (r) copyAs(r, form);
};
const KEYS = {
  j: () => app.move(1),
  k: () => app.move(-1),
  '/': () => $('q').focus(),
  p: () => app.setPaused(!state.paused),
  1: () => app.go('requests'),
  2: () => app.go('sessions'),
  '?': () => $('help').showModal(),
  t: nextTheme,
  f() {
    if (!state.hello) return;
    if (getComputedStyle($('desk')).display === 'none') openDesk();
    pickFault();
  },
  c: () => chosen('curl'),
  y: () => chosen('test'),
};
document.addEventListener('keydown', (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || $('help').open) return;
  if (e.key === 'Escape') {
    escape();
    e.preventDefault();
    return;
  }
  const el = e.target;
  const isTyping =
    /^(TEXTAREA|SELECT)$/.test(el.tagName) || (el.tagName === 'INPUT' && !/^(checkbox|range)$/.test(el.type));
  if (!$('keys-on').checked || isTyping || !Object.hasOwn(KEYS, e.key)) return;
  e.preventDefault();
  KEYS[e.key]();
});
