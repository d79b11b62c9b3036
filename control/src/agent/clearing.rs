//! Clears away translations that have outlived their time.
//!
//! # Why
//! Looking for them takes time even where there are none, so it is done beside the rounds: what changes meanwhile is
//! in the kernel without waiting for it.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::dataplane::observe::{self, Translations};
use crate::dataplane::pins::Pins;
use crate::dataplane::table::Error;
use crate::telemetry::cause;
use crate::telemetry::metrics::Meter;

/// How often, and how many rows are looked at each time; what is left waits for the next time.
const EVERY: Duration = Duration::from_secs(1);
const BUDGET: usize = 8192;

/// Starts, and goes on until the agent stops.
///
/// # Errors
/// A table is not pinned, or is not this version's.
pub fn start(pins: &Pins, meter: Meter, stop: CancellationToken) -> Result<(), Error> {
    let mut translations = Translations::open(pins)?;
    let mut turns = interval(EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::spawn(async move {
        while stop.run_until_cancelled(turns.tick()).await.is_some() {
            // What else this thread has to do, another one does meanwhile.
            let cleared = tokio::task::block_in_place(|| clear(&mut translations));
            if let Err(error) = cleared {
                error!(error = cause::line(&error), "clearing translations");
            }
            for (table, alive) in translations.alive() {
                if let Some(alive) = alive {
                    meter.alive(table, alive);
                }
            }
        }
    });
    Ok(())
}

fn clear(translations: &mut Translations) -> anyhow::Result<()> {
    Ok(translations.clear_expired(observe::now_s()?, BUDGET)?)
}
