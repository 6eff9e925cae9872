//! The autopsy: computes every tensor's statistics, verdicts and distance from its partner in one pass.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use safetensors::Dtype;

use crate::checkpoint;
use crate::checkpoint::catalogue::Tensor;
use crate::checkpoint::module::{Module, PackedRows};
use crate::checkpoint::{Checkpoint, Room};
use crate::commands::autopsy::compare::{Sums, compare};
use crate::commands::autopsy::judge::{Known, error, judge, role_of_module, role_of_tensor};
use crate::commands::autopsy::kinds::judge_families;
use crate::commands::autopsy::record::{
    AUTOPSY_VERSION, Autopsy, Comparison, Fault, LeftUnread, Role, Saturated, Severity, TensorAutopsy, Total,
};
use crate::commands::autopsy::statistics::{Counts, Gathered, Partial, Sixteen, Values};
use crate::commands::autopsy::thresholds::Thresholds;
use crate::delta::prefix_map::Renaming;
use crate::delta::record::source;
use crate::delta::select::Selection;
use crate::lora::WEIGHTS;
use crate::lora::read::PeftAdapter;
use crate::pipeline::memory::{catalogue, overhead, room_unrecorded};
use crate::pipeline::options::RunOptions;
use crate::pipeline::ordered_panels::{in_order, panel_bytes, panels, piece_rows, threads_within};
use crate::run::progress::Progress;
use crate::shared::Name;
use crate::{Error, Result};

/// Memory for the results of each tensor, which are kept until the end, in bytes.
const TENSOR: u64 = 2 << 10;

/// Memory of a thread apart from mapped pages and decoded pieces, in bytes: its counts, including those that wait to
/// be merged.
const THREAD: u64 = 3 << 20;

/// What to examine, and the limits of what is healthy.
#[derive(Clone, Debug)]
pub struct Examination {
    /// A checkpoint, or an adapter's folder.
    pub checkpoint: String,
    /// The checkpoint to compare it with.
    pub against: Option<String>,
    /// Patterns of tensors to examine; empty for all.
    pub include: Vec<String>,
    /// Patterns of tensors to leave out.
    pub exclude: Vec<String>,
    /// The limits of what is healthy.
    pub thresholds: Thresholds,
}

/// Examines every tensor of a checkpoint or adapter.
///
/// # Errors
/// A checkpoint that cannot be opened or read; patterns that select nothing; a memory limit that is too small. A fault
/// of a tensor is not an error of this function.
pub fn autopsy(job: &Examination, running: &RunOptions, progress: &dyn Progress) -> Result<Autopsy> {
    job.thresholds.check()?;
    let selection = Selection::of_all(&job.include, &job.exclude)?;
    let mut room = room_unrecorded(running.memory, 0);
    let ours = open(&job.checkpoint, &mut room)?;
    let theirs = job.against.as_deref().map(|spec| open(spec, &mut room)).transpose()?;
    let mut notes = Vec::new();
    let names = theirs.as_ref().map(|theirs| Renaming::detect(&ours, theirs)).unwrap_or_default();
    let Renaming { base, tuned, .. } = &names;
    if base != tuned {
        notes.push(format!("names are paired by prefix: '{base}' here is '{tuned}' in the other checkpoint"));
    }
    let (mut items, mut left_out) = items(&ours, &selection);
    if let Some(theirs) = &theirs {
        pair(&mut items, theirs, &names, &selection, &mut left_out);
    }
    let looked_at: BTreeSet<Name> = items.iter().map(|item| (&item.name).into()).collect();
    notes.extend(selection.idle(&looked_at).iter().map(|idle| format!("{idle} matches no tensor")));
    if items.is_empty() {
        return Err(Error::decide("no tensor is selected")
            .path(ours.root())
            .hint("check --include and --exclude"));
    }
    notes.iter().for_each(|note| progress.note(note));
    let (tensors, total) =
        examine(&Both { ours: &ours, theirs: theirs.as_ref() }, &items, job, running, progress)?;
    let identities = [("checkpoint", Some(&ours)), ("against", theirs.as_ref())];
    let identities = identities.into_iter().filter_map(|(side, opened)| Some((side, opened?)));
    left_out.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Autopsy {
        version: AUTOPSY_VERSION,
        trephine: env!("CARGO_PKG_VERSION").to_owned(),
        inputs: identities.map(|(side, opened)| (side.to_owned(), opened.identity().timeless())).collect(),
        checkpoint: source(&job.checkpoint, &ours),
        against: job.against.as_ref().zip(theirs.as_ref()).map(|(name, theirs)| source(name, theirs)),
        thresholds: job.thresholds,
        notes,
        total,
        tensors,
        left_out,
    })
}

/// Opens a checkpoint, or the weights of an adapter.
fn open(spec: &str, room: &mut Room) -> Result<Checkpoint> {
    match checkpoint::find(spec) {
        Ok(found) if found.is_dir() && PeftAdapter::is_at(&found) => {
            Checkpoint::open_file(&found.join(WEIGHTS))
        }
        Ok(found) if !found.exists() && PeftAdapter::is_named_by(spec)? => {
            Checkpoint::open_tensors_of(spec, WEIGHTS)
        }
        _ => Checkpoint::open_within(spec, room),
    }
}

/// One tensor to examine.
struct Item<'a> {
    name: String,
    role: Role,
    module: Cow<'a, Module>,
    shape: Vec<usize>,
    partner: Partner<'a>,
}

/// What an item is compared with.
enum Partner<'a> {
    None,
    /// The partner has this different shape.
    Shaped(Vec<usize>),
    Found(Cow<'a, Module>),
}

/// The checkpoints that hold the items and their partners.
struct Both<'a> {
    ours: &'a Checkpoint,
    theirs: Option<&'a Checkpoint>,
}

/// A tensor's name as used in patterns and tables.
fn short(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

/// Every selected tensor whose values can be read, and the names of those that cannot.
fn items<'a>(checkpoint: &'a Checkpoint, selection: &Selection) -> (Vec<Item<'a>>, Vec<LeftUnread>) {
    let (mut items, mut left_out) = (Vec::new(), Vec::new());
    for module in checkpoint.modules().filter(|module| selection.names(module.name())) {
        items.push(Item {
            name: module.name().to_owned(),
            role: role_of_module(module.name()),
            module: Cow::Borrowed(module),
            shape: module.shape().to_vec(),
            partner: Partner::None,
        });
    }
    for tensor in checkpoint.others().filter(|tensor| selection.names(short(tensor.name()))) {
        let leave = |why: String| LeftUnread { name: tensor.name().to_owned(), why };
        match Module::lines(tensor) {
            _ if tensor.stored.shape.contains(&0) => left_out.push(leave("has no elements".to_owned())),
            None => {
                left_out
                    .push(leave(format!("is {}, which is not read as numbers", tensor.stored.describe())));
            }
            Some(lines) => items.push(Item {
                name: short(tensor.name()).to_owned(),
                role: role_of_tensor(&tensor.stored),
                module: Cow::Owned(lines),
                shape: tensor.stored.shape.to_vec(),
                partner: Partner::None,
            }),
        }
    }
    items.sort_by(|a, b| a.name.cmp(&b.name));
    (items, left_out)
}

/// Finds the partner of each item, and lists the tensors without one.
fn pair<'a>(
    items: &mut [Item<'a>],
    theirs: &'a Checkpoint,
    names: &Renaming,
    selection: &Selection,
    left_out: &mut Vec<LeftUnread>,
) {
    let mut taken = BTreeSet::new();
    for item in items.iter_mut() {
        let (partner, name) = partner(item, theirs, names);
        taken.extend(name);
        if matches!(partner, Partner::None) {
            let why = "is not compared: the other checkpoint has no such tensor".to_owned();
            left_out.push(LeftUnread { name: item.name.clone(), why });
        }
        item.partner = partner;
    }
    let modules = theirs.modules().map(Module::name);
    let others = theirs.others().filter(|tensor| Module::lines(tensor).is_some()).map(Tensor::name);
    for name in modules.chain(others).filter(|name| !taken.contains(*name) && selection.names(short(name))) {
        left_out
            .push(LeftUnread { name: name.to_owned(), why: "is only in the other checkpoint".to_owned() });
    }
}

fn partner<'a>(item: &Item<'_>, theirs: &'a Checkpoint, names: &Renaming) -> (Partner<'a>, Option<String>) {
    let stored = item.module.tensors()[0].name();
    let modules = names.candidates(&item.name);
    if let Some(module) = modules.iter().find_map(|name| theirs.module(name)) {
        let found = if module.shape()[..] == item.shape[..] {
            Partner::Found(Cow::Borrowed(module))
        } else {
            Partner::Shaped(module.shape().to_vec())
        };
        return (found, Some(module.name().to_owned()));
    }
    let tensors = names.candidates(stored);
    let Some(tensor) = tensors.iter().find_map(|name| theirs.tensor(name)) else {
        return (Partner::None, None);
    };
    let found = match Module::lines(tensor) {
        Some(lines) if tensor.stored.shape == item.shape => Partner::Found(Cow::Owned(lines)),
        _ => Partner::Shaped(tensor.stored.shape.to_vec()),
    };
    (found, Some(tensor.name().to_owned()))
}

/// The results of one panel.
struct Examined {
    partial: Partial,
    zero_rows: u64,
    saturated: Option<(u64, u32)>,
    sums: Option<Sums>,
}

/// Examines all items, in order.
fn examine(
    both: &Both<'_>,
    items: &[Item<'_>],
    job: &Examination,
    running: &RunOptions,
    progress: &dyn Progress,
) -> Result<(Vec<TensorAutopsy>, Total)> {
    let bytes = items.iter().map(thread_bytes).max().unwrap_or(0);
    let catalogues: u64 = std::iter::once(both.ours).chain(both.theirs).map(catalogue).sum();
    let fixed = overhead() + catalogues + TENSOR * items.len() as u64;
    let threads = threads_within(running.threads, running.memory, fixed, bytes)?;
    let numbered = items.iter().enumerate();
    let all_panels: Vec<(usize, Range<usize>)> =
        numbered.flat_map(|(index, item)| panels(&item.module).map(move |rows| (index, rows))).collect();
    progress.begin(items.len(), items.iter().map(|item| item.module.size()).sum(), 0, 0);
    let (mut tensors, mut total) = (Vec::with_capacity(items.len()), Total::default());
    let (mut gathering, mut all_sums) = (Gathering::default(), Sums::default());
    let announce = |number: usize| {
        if let Some((index, rows)) = all_panels.get(number) {
            fetch_ahead(both, &items[*index], rows);
        }
    };
    (0..FETCHED_AHEAD).for_each(announce);
    let work = |number: usize| {
        announce(number + FETCHED_AHEAD);
        let (index, rows) = &all_panels[number];
        examine_panel(both, &items[*index], rows.clone())
    };
    in_order(all_panels.len(), threads, work, |number, examined| {
        let (index, rows) = &all_panels[number];
        let item = &items[*index];
        gathering.add(examined);
        if rows.end == item.module.shape()[0] {
            let gathered = std::mem::take(&mut gathering);
            all_sums.add(&gathered.sums.unwrap_or_default());
            tensors.push(gathered.finish(item, job));
            progress.read(item.module.size());
        }
        Ok(())
    })?;
    judge_families(&mut tensors, &job.thresholds);
    tensors.iter().for_each(|tensor| total.add(tensor));
    total.comparison = both.theirs.map(|_| all_sums.finish(None, true));
    Ok((tensors, total))
}

/// Memory that a thread needs while it examines a panel, in bytes.
fn thread_bytes(item: &Item<'_>) -> u64 {
    let columns = item.module.shape()[1];
    let piece = (piece_rows(columns) * columns) as u64 * 8;
    match &item.partner {
        Partner::Found(partner) => THREAD + panel_bytes(&item.module) + panel_bytes(partner) + 3 * piece,
        _ => THREAD + panel_bytes(&item.module) + 2 * piece,
    }
}

/// Panels that are announced to the link to a server, which fetches those that there is memory for.
const FETCHED_AHEAD: usize = 32;

fn fetch_ahead(both: &Both<'_>, item: &Item<'_>, rows: &Range<usize>) {
    if both.ours.is_remote() {
        item.module.prefetch(both.ours, rows.clone());
    }
    if let (Partner::Found(partner), Some(theirs)) = (&item.partner, both.theirs.filter(|c| c.is_remote())) {
        partner.prefetch(theirs, rows.clone());
    }
}

fn examine_panel(both: &Both<'_>, item: &Item<'_>, rows: Range<usize>) -> Result<Examined> {
    let failed = |e: Error| e.path(both.ours.path(item.module.tensors()[0].file)).tensor(&item.name);
    let packed = item.module.read(both.ours, rows.clone())?;
    let (partial, zero_rows) = statistics(&packed, &item.module).map_err(failed)?;
    let saturated = item.module.is_quantized().then(|| saturated(&packed, &item.module)).flatten();
    let sums = match (&item.partner, both.theirs) {
        (Partner::Found(partner), Some(theirs)) => {
            let other = partner.read(theirs, rows)?;
            Some(compare(&packed, &other, [&item.module, partner]).map_err(failed)?)
        }
        _ => None,
    };
    Ok(Examined { partial, zero_rows, saturated, sums })
}

/// The pieces of a panel, each decoded at once.
fn pieces(packed: &PackedRows, columns: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let (rows, height) = (packed.rows(), piece_rows(columns));
    rows.clone().step_by(height).map(move |start| start..(start + height).min(rows.end))
}

/// The statistics of a panel, and the number of its rows that are all zero.
fn statistics(packed: &PackedRows, module: &Module) -> Result<(Partial, u64)> {
    let (columns, dtype) = (module.shape()[1], module.tensors()[0].stored.dtype);
    let sixteen = match dtype {
        Dtype::BF16 => Some(Sixteen::Bf16),
        Dtype::F16 => Some(Sixteen::F16),
        _ => None,
    };
    let values = packed.rows().len() * columns;
    // A weight stored transposed maps more than the codes of its rows, so it is decoded like any other.
    let plain = !module.is_quantized()
        && packed.windows().iter().map(|window| window.len()).sum::<usize>() == 2 * values;
    if let Some(sixteen) = sixteen.filter(|_| plain) {
        let mut counts = Counts::default();
        packed.windows().iter().for_each(|window| counts.add(window));
        // A zero may have a sign.
        let zero = |row: &[u8]| row.as_chunks::<2>().0.iter().all(|code| code[0] == 0 && code[1] & 0x7f == 0);
        let rows = packed.windows().iter().flat_map(|window| window.chunks(2 * columns.max(1)));
        return Ok((Partial::Codes(sixteen, counts), rows.filter(|row| zero(row)).count() as u64));
    }
    let (mut values, mut zero_rows) = (Values::new(), 0);
    if module.weight().is_wide() {
        let mut piece = vec![0f64; piece_rows(columns) * columns];
        for rows in pieces(packed, columns) {
            let piece = &mut piece[..rows.len() * columns];
            packed.decode_some_f64(rows, piece)?;
            zero_rows += count_zero_rows(piece, columns);
            values.add_f64(piece);
        }
    } else {
        let mut piece = vec![0f32; piece_rows(columns) * columns];
        for rows in pieces(packed, columns) {
            let piece = &mut piece[..rows.len() * columns];
            packed.decode_some(rows, piece)?;
            zero_rows += count_zero_rows(piece, columns);
            values.add(piece);
        }
    }
    Ok((Partial::Values(Box::new(values)), zero_rows))
}

fn count_zero_rows<T: Copy + PartialEq + Default>(values: &[T], columns: usize) -> u64 {
    let rows = values.chunks(columns.max(1));
    rows.filter(|row| row.iter().all(|value| *value == T::default())).count() as u64
}

fn saturated(packed: &PackedRows, module: &Module) -> Option<(u64, u32)> {
    let counts = pieces(packed, module.shape()[1]).map(|rows| packed.saturated(rows));
    counts.reduce(|sum, more| Some((sum?.0 + more?.0, sum?.1))).flatten()
}

/// The results of one item's panels, merged in order.
#[derive(Default)]
struct Gathering {
    values: Gathered,
    zero_rows: u64,
    saturated: Option<(u64, u32)>,
    sums: Option<Sums>,
}

impl Gathering {
    fn add(&mut self, examined: Examined) {
        self.values.add(examined.partial);
        self.zero_rows += examined.zero_rows;
        if let Some((codes, bits)) = examined.saturated {
            self.saturated = Some((self.saturated.map_or(0, |(sum, _)| sum) + codes, bits));
        }
        if let Some(sums) = &examined.sums {
            self.sums.get_or_insert_default().add(sums);
        }
    }

    fn finish(self, item: &Item<'_>, job: &Examination) -> TensorAutopsy {
        let statistics = self.values.finish();
        let count = statistics.count.max(1) as f64;
        let saturated =
            self.saturated.map(|(codes, bits)| Saturated { codes, share: codes as f64 / count, bits });
        let comparison = self.sums.map(|sums| compared(&sums, item));
        let dtype = item.module.tensors()[0].stored.dtype;
        let quantized = item.module.is_quantized();
        let known = Known {
            role: item.role,
            quantized,
            inputs: item.shape.last().copied().unwrap_or(1),
            zero_rows: (self.zero_rows, item.module.shape()[0] as u64),
            statistics: &statistics,
            saturated,
            comparison: comparison.as_ref(),
        };
        let mut verdicts = judge(&known, &job.thresholds);
        if let Partner::Shaped(shape) = &item.partner {
            let why = format!("has the shape {:?}, but its partner has {shape:?}", item.shape);
            verdicts.push(error(Fault::ShapeDiffers, None, why));
        }
        TensorAutopsy {
            name: item.name.clone(),
            role: item.role,
            shape: item.shape.clone(),
            dtype: dtype.to_string(),
            quantized,
            bytes: item.module.size(),
            statistics,
            zero_rows: self.zero_rows,
            saturated,
            comparison,
            verdicts,
        }
    }
}

fn compared(sums: &Sums, item: &Item<'_>) -> Comparison {
    let name = match &item.partner {
        Partner::Found(partner) => Some(short(partner.name()).to_owned()),
        _ => None,
    };
    sums.finish(name.filter(|name| *name != item.name), item.shape.len() > 1)
}

impl Total {
    fn add(&mut self, tensor: &TensorAutopsy) {
        let TensorAutopsy { statistics, bytes, verdicts, .. } = tensor;
        self.tensors += 1;
        self.elements += statistics.count;
        self.bytes += bytes;
        self.nan += statistics.nan;
        self.infinite += statistics.infinite;
        self.zeros += statistics.zeros;
        let faults: BTreeMap<Fault, Severity> = verdicts.iter().map(|v| (v.fault, v.gravity)).collect();
        faults.keys().for_each(|fault| *self.verdicts.entry(*fault).or_default() += 1);
        match verdicts.iter().map(|verdict| verdict.gravity).max() {
            Some(Severity::Error) => self.errors += 1,
            Some(Severity::Warning) => self.warnings += 1,
            None => {}
        }
    }
}
