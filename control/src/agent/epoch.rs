//! Tells the datapath when the ways that it has learnt are old.
//!
//! The datapath asks the kernel for the way of a flow's answers once a second and again when `WAY_EPOCH` has
//! changed. Without an agent that turns it, a way is at most a second old.

use std::time::Duration;

use fairlead_common::tables::WayEpoch;
use tokio::task::JoinHandle;
use tracing::{error, warn};

use crate::dataplane::pins::Pins;
use crate::dataplane::table::{self, Pinned};
use crate::host::fib::Watch;

/// The least time between two turns. There are 255 epochs, and a row remembers one for up to a second: in this time
/// it does not come again.
const PACE: Duration = Duration::from_millis(10);

/// The task that turns the epoch.
#[derive(Debug)]
pub struct Epochs {
    task: JoinHandle<()>,
    pins: Pins,
}

impl Epochs {
    /// Begins a new epoch, and another one at each change of what decides where packets are sent.
    ///
    /// # Errors
    /// The kernel cannot be watched, or the table cannot be written.
    pub fn begin(pins: &Pins) -> anyhow::Result<Self> {
        let mut watch = Watch::open()?;
        let mut table = Pinned::<WayEpoch>::open(pins)?;
        turn(&mut table)?;
        let task = tokio::spawn(async move {
            while watch.changed().await.is_some() {
                if let Err(error) = turn(&mut table) {
                    warn!(%error, "ways that the datapath has learnt may be a second old");
                }
                tokio::time::sleep(PACE).await;
            }
            error!("netlink has closed: the datapath learns no ways");
            let _ = table.set(&0, &0);
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
        Pinned::<WayEpoch>::open(&self.pins)?.set(&0, &0)
    }
}

/// Begins the next epoch; 0 is none.
fn turn(table: &mut Pinned<WayEpoch>) -> Result<(), table::Error> {
    let epoch = table.get(&0)?.unwrap_or_default();
    table.set(&0, &(epoch % 255 + 1))
}
