//! Drives a BGP speaker over TCP: sockets, clock and tasks, and no decision about BGP.
//!
//! ```text
//!   BgpHandle --commands--> driver (owns the Speaker) <--arrivals-- listener, dial, reader, writer
//!       ^                      |  |                                   (reader and writer: one
//!       |                      |  '--bytes--> writer                   pair per connection)
//!       '-- learnt, events <-- publisher
//! ```
//!
//! One driver is one virtual router; a node may run several. When its token is cancelled it closes
//! the connections and says nothing to the peers: those that keep routes over a restart do so.
//! [`BgpHandle::shutdown`] and [`BgpHandle::withdraw_all`] are for leaving on purpose.
//!
//! BFD stands beside it (`bfd`): a thread for all speakers, of which each driver hears what concerns its
//! own peers.
//!
//! Not for: which prefixes are announced, and what becomes of the learnt ones.

pub mod bfd;
mod connection;
mod distance;
mod driver;
mod history;
mod netstat;
mod publisher;
pub mod record;
mod signature;
mod socket;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use fairlead_bgp::config::Announcements;
use fairlead_bgp::{
    AdvertisedRoute, Event, Family, LearntPath, PeerConfig, PeerRange, PeerSnapshot, PrefixMap,
    RouteSnapshot, Speaker, SpeakerConfig,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use bfd::Watch;
use driver::Driver;
pub use history::Happened;
pub use netstat::Md5Drops;
use record::Recorder;

/// Commands that may wait for the driver.
const COMMANDS: usize = 64;
/// Events that a slow subscriber may lag behind before it loses some.
const EVENTS: usize = 1024;

/// The learnt routes that packets should take, best path first.
pub type LearntRoutes = PrefixMap<Arc<[LearntPath]>>;

/// Everything that a speaker shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpSnapshot {
    /// What the speaker is.
    pub config: SpeakerConfig,
    /// Where it listens.
    pub listening: Vec<SocketAddr>,
    /// Its peers, in the order of their names.
    pub peers: Vec<PeerSnapshot>,
    /// All paths, learnt and originated.
    pub routes: Vec<RouteSnapshot>,
    /// What each peer was told.
    pub advertised: BTreeMap<String, Vec<AdvertisedRoute>>,
}

/// The driver has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the BGP speaker has stopped")]
pub struct Stopped;

/// Talks to a running driver.
#[derive(Debug, Clone)]
pub struct BgpHandle {
    local_as: u32,
    commands: mpsc::Sender<Command>,
    learnt: watch::Receiver<Arc<LearntRoutes>>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug)]
enum Command {
    SetPeers(Vec<PeerConfig>),
    SetRanges(Vec<PeerRange>),
    SetBfd(Option<Watch>),
    SetAnnouncements(Announcements),
    Refresh(String, Family, oneshot::Sender<bool>),
    Peers(oneshot::Sender<Vec<PeerSnapshot>>),
    Snapshot(oneshot::Sender<BgpSnapshot>),
    Look(Look),
    History(oneshot::Sender<Vec<Happened>>),
    Shutdown(String, oneshot::Sender<()>),
}

type Question = dyn FnOnce(&Speaker, Instant) + Send;

/// A question that the speaker answers by itself.
struct Look(Box<Question>);

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Look")
    }
}

/// Starts a speaker without peers; listens on a port of both families if one is given.
///
/// Must be called inside a tokio runtime. The seed feeds the jitter of timers. What it is told is written down
/// if there is a recorder.
///
/// # Errors
/// The port cannot be listened on.
pub fn start(
    config: SpeakerConfig,
    seed: u64,
    listen: Option<u16>,
    recorder: Option<&Recorder>,
    cancel: CancellationToken,
) -> io::Result<(BgpHandle, JoinHandle<()>)> {
    let listeners = match listen {
        Some(port) => socket::listen(port)?,
        None => Vec::new(),
    };
    let local_as = config.local_as;
    let (commands, command_queue) = mpsc::channel(COMMANDS);
    let (learnt_sender, learnt) = watch::channel(Arc::default());
    let (events, _) = broadcast::channel(EVENTS);
    let record = recorder.map(|recorder| recorder.begin(&config, seed));
    let driver = Driver::new(
        Speaker::new(config, seed),
        record,
        listeners,
        learnt_sender,
        events.clone(),
        cancel,
    );
    let task = tokio::spawn(driver.run(command_queue));
    let handle = BgpHandle {
        local_as,
        commands,
        learnt,
        events,
    };
    Ok((handle, task))
}

impl BgpHandle {
    /// The AS of the speaker.
    pub const fn local_as(&self) -> u32 {
        self.local_as
    }

    /// Makes the peers exactly these; sessions whose OPEN does not change stay up.
    pub async fn set_peers(&self, peers: Vec<PeerConfig>) -> Result<(), Stopped> {
        self.command(Command::SetPeers(peers)).await
    }

    /// Makes the ranges from which others may dial exactly these.
    pub async fn set_ranges(&self, ranges: Vec<PeerRange>) -> Result<(), Stopped> {
        self.command(Command::SetRanges(ranges)).await
    }

    /// Lets BFD watch the peers that want it; with `None` nobody is watched.
    pub async fn set_bfd(&self, watch: Option<Watch>) -> Result<(), Stopped> {
        self.command(Command::SetBfd(watch)).await
    }

    /// Makes the announcements exactly these. The first call releases the End-of-RIB markers, so
    /// make it when everything that should be announced is known.
    pub async fn set_announcements(&self, announcements: Announcements) -> Result<(), Stopped> {
        self.command(Command::SetAnnouncements(announcements)).await
    }

    /// Withdraws everything; sessions stay up.
    pub async fn withdraw_all(&self) -> Result<(), Stopped> {
        self.set_announcements(Announcements::new()).await
    }

    /// Asks a peer for its routes again; whether it could be asked.
    pub async fn refresh(&self, peer: &str, family: Family) -> Result<bool, Stopped> {
        self.ask(|answer| Command::Refresh(peer.to_owned(), family, answer))
            .await
    }

    /// The peers as they stand.
    pub async fn peers(&self) -> Result<Vec<PeerSnapshot>, Stopped> {
        self.ask(Command::Peers).await
    }

    /// Everything.
    pub async fn snapshot(&self) -> Result<BgpSnapshot, Stopped> {
        self.ask(Command::Snapshot).await
    }

    /// Looks into the speaker; it does nothing else meanwhile.
    pub async fn look<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Speaker, Instant) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        self.ask(|answer| {
            Command::Look(Look(Box::new(move |speaker, now| {
                // An asker that went away does not want its answer.
                let _ = answer.send(question(speaker, now));
            })))
        })
        .await
    }

    /// What happened, as far as it is remembered, the oldest first.
    pub async fn history(&self) -> Result<Vec<Happened>, Stopped> {
        self.ask(Command::History).await
    }

    /// Ends all sessions with an administrative shutdown and returns when the peers were told.
    pub async fn shutdown(&self, text: &str) -> Result<(), Stopped> {
        self.ask(|answer| Command::Shutdown(text.to_owned(), answer))
            .await
    }

    /// The learnt routes, now and whenever they change.
    pub fn learnt(&self) -> watch::Receiver<Arc<LearntRoutes>> {
        self.learnt.clone()
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    async fn command(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).await.map_err(|_| Stopped)
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.command(command(answer)).await?;
        answered.await.map_err(|_| Stopped)
    }
}

#[cfg(test)]
mod tests;
