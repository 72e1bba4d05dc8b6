//! Ways around the capture, as a table: each is tried without an agent, where it leads to the server, then with an agent
//! that captures what is declared, then with one that captures everything.
//!
//! What a way is called in SECURITY.md is its name here.
//!
//! - `ways`: the table; `stage`: where they are tried, and how what comes of them is seen

mod stage;
mod ways;

use anyhow::{Result, ensure};

use stage::{Mode, Stage};
use ways::Outcome::{Done, Reached};
use ways::WAYS;

/// Runs all ways in one mode; all that went wrong is told at once.
fn check_all(mode: Mode) -> Result<()> {
    let mut stage = Stage::set(mode)?;
    let mut wrong = Vec::new();
    for way in WAYS {
        if let Err(error) = stage.check(way) {
            wrong.push(format!("{}: {error:#}", way.name));
        }
    }
    // What was refused has not arrived late.
    for way in WAYS {
        if !matches!(stage.expected(way)?, Reached | Done(_)) && stage.saw(&stage.tool(way)) {
            wrong.push(format!("{}: reached the server in the end", way.name));
        }
    }
    ensure!(wrong.is_empty(), "{mode:?}: {} of {} ways:\n{}", wrong.len(), WAYS.len(), wrong.join("\n"));
    Ok(())
}

#[test]
fn every_way_leads_to_the_server_without_an_agent() -> Result<()> {
    check_all(Mode::Off)
}

#[test]
fn no_way_leads_around_the_capture_of_a_declared_server() -> Result<()> {
    check_all(Mode::Declared)
}

#[test]
fn no_way_leads_around_the_capture_of_everything() -> Result<()> {
    check_all(Mode::All)
}
