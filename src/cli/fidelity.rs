//! `trephine fidelity`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use trephine::Result;
use trephine::commands::extract::default_memory;
use trephine::commands::fidelity::{Distances, Fidelity, Measuring, fidelity};
use trephine::pipeline::RunOptions;

use crate::cli::ui::byte_size;
use crate::cli::ui::progress_bar::Bar;
use crate::cli::ui::signal::leave_on_signal;
use crate::cli::{print, print_json, threads};

/// Measures how far the served weights are from the tuned ones, with each adapter and with none.
///
/// Accepts any LoRA adapter that PEFT loads. For an adapter that extract wrote, the result is the one that
/// extract --served reports.
#[derive(Debug, Args)]
pub struct FidelityArgs {
    /// An adapter: a folder, a name in the Hugging Face cache, or an address. Can be repeated
    #[arg(long = "adapter", value_name = "ADAPTER", required = true)]
    adapters: Vec<String>,
    /// The served checkpoint, usually quantized
    #[arg(long, value_name = "CHECKPOINT", alias = "base-quantized")]
    served: String,
    /// The checkpoint that the served weights should match
    #[arg(long, value_name = "CHECKPOINT")]
    tuned: String,
    /// The folder to write fidelity.json to
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Limit on the peak resident memory of the whole process
    /// [default: the smaller of 2GiB and half the available memory]
    #[arg(long, value_name = "SIZE", value_parser = byte_size::parse)]
    memory: Option<u64>,
    /// Number of compute threads [default: one per processor]
    #[arg(long)]
    threads: Option<usize>,
    /// Discard an earlier measurement in the output folder and start over
    #[arg(long)]
    overwrite: bool,
    /// Resume a measurement that was started on a processor with different vector instructions; its
    /// numbers may then differ
    #[arg(long)]
    other_simd: bool,
    /// Show a row for every module, not only for every kind
    #[arg(long)]
    modules: bool,
    /// Do not show progress
    #[arg(short, long)]
    quiet: bool,
    /// Print all of fidelity.json to stdout instead of a table
    #[arg(long)]
    json: bool,
}

/// Measures, and prints the result.
pub fn run(arguments: FidelityArgs) -> Result<ExitCode> {
    let running = RunOptions {
        overwrite: arguments.overwrite,
        other_simd: arguments.other_simd,
        ..RunOptions::new(threads(arguments.threads)?, arguments.memory.unwrap_or_else(default_memory))
    };
    let job = Measuring {
        adapters: arguments.adapters,
        served: arguments.served,
        tuned: arguments.tuned,
        out: arguments.out,
        running,
    };
    let bar = Bar::new(arguments.quiet);
    leave_on_signal(&bar)?;
    let measured = fidelity(&job, &bar);
    bar.clear();
    let measured = measured?;
    if arguments.json {
        print_json(&measured)?;
    } else {
        print(&show(&measured, arguments.modules))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(measured: &Fidelity, every_module: bool) -> String {
    let names = measured.adapters.iter().map(|adapter| adapter.name.clone());
    let mut rows = Table::new();
    let mut headings: Vec<String> =
        [if every_module { "module" } else { "kind" }, "modules", "no adapter"].map(Into::into).into();
    headings.extend(names.flat_map(|name| [name, "vs none".to_owned()]));
    rows.load_style(presets::NOTHING).set_header(headings);
    for column in rows.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut add = |name: &str, count: usize, distances: &Distances| {
        let mut cells = vec![name.to_owned(), count.to_string(), format!("{:.5}", distances.without)];
        for (with, ratio) in distances.with.iter().zip(&distances.ratio) {
            cells.push(format!("{with:.5}"));
            cells.push(ratio.map_or("-".into(), |ratio| format!("{:.2} %", 100.0 * ratio)));
        }
        rows.add_row(cells);
    };
    if every_module {
        measured.modules.iter().for_each(|module| add(&module.name, 1, &module.distances));
    } else {
        measured.kinds.iter().for_each(|kind| add(&kind.name, kind.modules, &kind.distances));
    }
    add("all", measured.modules.len(), &measured.total);
    format!(
        "distance of the served weights from the tuned ones, by Frobenius norm\n\n{rows}\n\nA distance of weights is not a \
         loss: where the base's noise is larger than the change, an adapter that holds the change can serve better although more \
         of the distance remains. `trephine evaluate` measures the loss.\n"
    )
}
