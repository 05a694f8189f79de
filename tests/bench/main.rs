//! Speed, memory and idleness, measured side by side with what they are judged by, and printed as a table. `tests/bench/run`
//! starts it; arguments name the parts to run, nothing means all of them. A part that cannot run here says why.

#[path = "../services/api.rs"]
#[expect(dead_code, reason = "the tests of Services use more of it")]
mod api;
mod catch_up;
mod containers;
mod data;
mod digest;
mod forwards;
mod latency;
#[path = "../node/node.rs"]
#[expect(dead_code, reason = "the tests on the node use more of it")]
mod node;
mod policy;
mod resources;
mod scan;
mod table;
mod world;

use std::process::ExitCode;

use crate::table::Table;

/// Measures, and fills the table; an error is the reason why it cannot be measured here.
type Part = fn(&mut Table) -> Result<(), String>;

const PARTS: [(&str, Part); 9] = [
    ("scan", scan::run),
    ("catch-up", catch_up::run),
    ("digest", digest::run),
    ("latency", latency::run),
    ("policy", policy::run),
    ("containers", containers::run),
    ("forwards", forwards::run),
    ("memory", resources::memory),
    ("idle", resources::idle),
];

fn main() -> ExitCode {
    if let Ok(part) = std::env::var(world::INSIDE) {
        return inside(&part);
    }
    // cargo bench says --bench to whatever it starts.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let Some(unknown) = wanted.iter().find(|wanted| !PARTS.iter().any(|(name, _)| name == wanted)) {
        eprintln!("{unknown} is no part; there are: {}", PARTS.map(|(name, _)| name).join(", "));
        return ExitCode::from(2);
    }
    let mut table = Table::default();
    for (name, part) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            eprintln!("{name} ...");
            if let Err(why) = part(&mut table) {
                table.note(format!("{name}: not measured: {why}"));
            }
        }
    }
    table.print();
    ExitCode::SUCCESS
}

/// Measures what needs namespaces of its own in them, and prints the numbers.
#[expect(clippy::print_stdout, reason = "whoever started this reads them")]
fn inside(part: &str) -> ExitCode {
    let numbers = match part {
        latency::BARE => latency::bare(),
        forwards::STAND => forwards::stand(),
        forwards::BARE => forwards::bare(),
        forwards::SERVICES => forwards::services(),
        "latency" => latency::inside(),
        _ => catch_up::inside(),
    };
    match numbers {
        Ok(numbers) => {
            println!("{}", numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{part}: {why}");
            ExitCode::FAILURE
        }
    }
}
