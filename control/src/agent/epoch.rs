//! Tells the datapath when the ways that it has learnt are old.
//!
//! The datapath asks the kernel for the way of a flow's answers every few seconds ([`nat::WAY_S`]) and again when
//! the epoch has changed. Without an agent that turns it, a way is no older than that.
//!
//! The row of `WAY_EPOCH` has the epoch in its low octet. While that is 0 none is learnt, and the octet above it says
//! which one was the last: the next agent goes on from there, for rows of flows remember it still.

use std::time::Duration;

use fairlead_common::nat::{self, NatWay};
use fairlead_common::tables::{NatWays, WayEpoch};
use tokio::task::JoinHandle;
use tracing::{error, warn};

use crate::dataplane::pins::Pins;
use crate::dataplane::table::{self, Pinned};
use crate::host::fib::Watch;

/// The least time between two turns. There are 255 epochs, and a row remembers one for up to [`nat::WAY_S`]: in this
/// time it does not come again.
const PACE: Duration = Duration::from_millis(20);
const _: () = assert!(PACE.as_millis() * 255 > nat::WAY_S as u128 * 1000);

/// The task that turns the epoch.
#[derive(Debug)]
pub struct Epochs {
    task: JoinHandle<()>,
    pins: Pins,
}

impl Epochs {
    /// Forgets all ways and begins a new epoch, and another one at each change of what decides where packets are sent.
    ///
    /// # Errors
    /// The kernel cannot be watched, or the table cannot be written.
    pub fn begin(pins: &Pins) -> anyhow::Result<Self> {
        let mut watch = Watch::open()?;
        let mut table = Pinned::<WayEpoch>::open(pins)?;
        let before = table.get(&0)?.unwrap_or_default();
        forget_ways(pins, &mut table)?;
        table.set(&0, &after(before))?;
        let task = tokio::spawn(async move {
            while watch.changed().await.is_some() {
                if let Err(error) = turn(&mut table) {
                    warn!(%error, "ways that the datapath has learnt may be old for some seconds");
                }
                tokio::time::sleep(PACE).await;
            }
            error!("netlink has closed: the datapath learns no ways");
            let _ = pause(&mut table);
        });
        Ok(Self {
            task,
            pins: pins.clone(),
        })
    }

    /// From here on the kernel is asked for every packet: nobody would tell that something has changed.
    ///
    /// # Errors
    /// The table cannot be written.
    pub async fn end(self) -> Result<(), table::Error> {
        self.task.abort();
        // Over when it is aborted; how it ended says nothing.
        let _ = self.task.await;
        pause(&mut Pinned::<WayEpoch>::open(&self.pins)?)
    }
}

/// Begins the next epoch.
fn turn(table: &mut Pinned<WayEpoch>) -> Result<(), table::Error> {
    let row = table.get(&0)?.unwrap_or_default();
    table.set(&0, &after(row))
}

/// Ends the epoch, and begins none.
fn pause(table: &mut Pinned<WayEpoch>) -> Result<(), table::Error> {
    let row = table.get(&0)?.unwrap_or_default();
    table.set(&0, &paused(row))
}

/// The row with the epoch after the last one.
const fn after(row: u32) -> u32 {
    (paused(row) >> 8) % 255 + 1
}

/// The row without an epoch.
const fn paused(row: u32) -> u32 {
    if row.is_multiple_of(256) {
        row
    } else {
        row << 8
    }
}

/// Frees the rows of all ways, which the datapath never does: nobody goes them, and none is learnt meanwhile.
fn forget_ways(pins: &Pins, epoch: &mut Pinned<WayEpoch>) -> Result<(), table::Error> {
    pause(epoch)?;
    let mut ways = Pinned::<NatWays>::open(pins)?;
    let rows = ways.rows().collect::<Result<Vec<_>, _>>()?;
    for (at, _) in rows.iter().filter(|(_, way)| *way != NatWay::default()) {
        ways.set(at, &NatWay::default())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_follow_each_other_also_over_a_pause_and_none_is_zero() {
        let mut row = 0;
        for wanted in (1..=255).chain(1..=255) {
            row = after(row);
            assert_eq!(row, wanted);
            assert_eq!(paused(row) as u8, 0, "as the datapath reads it");
            assert_eq!(after(paused(row)), after(row));
            assert_eq!(paused(paused(row)), paused(row));
        }
    }
}
