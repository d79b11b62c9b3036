//! BFD on a thread of its own, with its own sockets: what else the agent does never delays it.
//!
//! ```text
//!   Bfd (handle) --commands, eventfd--> thread (owns the engine) <--> UDP 3784, 4784
//!   Watch of a speaker <---- events ------'
//! ```
//!
//! The thread takes in every packet that waits before it lets time pass, so that a packet is never late
//! because we are. It runs at a better priority than the rest where the process may ask for that. There is
//! one for all speakers: sessions are between addresses, not virtual routers.
//!
//! Not for: what becomes of a BGP session (the speaker's), and no tokio below this file's handles.

mod socket;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fairlead_bgp::bfd::{self, Discard, Event, Key, Snapshot, Timing};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use socket::{Incoming, Outgoing};

/// The thread's nice value: ahead of all ordinary work, behind what is real-time.
const NICE: i32 = -15;

/// What BFD shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BfdSnapshot {
    /// Its sessions.
    pub sessions: Vec<Snapshot>,
    /// Packets that were not taken, by the reason.
    pub discarded: BTreeMap<Discard, u64>,
}

/// The running thread. When it stops, or the last clone goes, the peers are told that we leave on purpose.
#[derive(Debug, Clone)]
pub struct Bfd(Arc<Running>);

#[derive(Debug)]
struct Running {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// The sessions of one speaker, and what happens to them.
#[derive(Debug)]
pub struct Watch {
    bfd: Bfd,
    owner: u64,
    events: mpsc::UnboundedReceiver<Event>,
}

#[derive(Debug)]
enum Command {
    Watch(u64, mpsc::UnboundedSender<Event>),
    Follow(u64, BTreeMap<Key, Timing>),
    Forget(u64),
    Snapshot(oneshot::Sender<BfdSnapshot>),
    /// Answered when the peers were told.
    Stop(oneshot::Sender<()>),
}

/// What a speaker wants.
struct Owner {
    sessions: BTreeMap<Key, Timing>,
    events: mpsc::UnboundedSender<Event>,
}

impl Bfd {
    /// Takes the ports and starts the thread, in the network namespace of the caller.
    ///
    /// # Errors
    /// A port is taken, by another BFD daemon for instance.
    pub fn start() -> io::Result<Self> {
        let incoming = Incoming::open()?;
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let (commands, queue) = channel();
        let engine = Engine {
            // Two lives of the process must differ.
            bfd: bfd::Bfd::new(RandomState::new().build_hasher().finish()),
            incoming,
            outgoing: Outgoing::default(),
            owners: BTreeMap::new(),
            wake: Arc::clone(&wake),
        };
        let thread = std::thread::Builder::new()
            .name("fairlead-bfd".to_owned())
            .spawn(move || engine.run(&queue))?;
        Ok(Self(Arc::new(Running {
            commands,
            wake,
            thread: Some(thread),
        })))
    }

    /// A place for the sessions of one speaker.
    pub fn watch(&self) -> Watch {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let owner = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (told, events) = mpsc::unbounded_channel();
        self.0.order(Command::Watch(owner, told));
        Watch {
            bfd: self.clone(),
            owner,
            events,
        }
    }

    /// Ends the thread, whoever holds it.
    pub async fn stop(&self) {
        let (answer, answered) = oneshot::channel();
        self.0.order(Command::Stop(answer));
        // One that has stopped before does not answer.
        let _ = answered.await;
    }

    /// All sessions as they stand.
    pub async fn snapshot(&self) -> BfdSnapshot {
        let (answer, answered) = oneshot::channel();
        self.0.order(Command::Snapshot(answer));
        answered.await.unwrap_or_default()
    }
}

impl Running {
    fn order(&self, command: Command) {
        // A thread that has ended is missed where it is asked.
        let _ = self.commands.send(command);
        let _ = self.wake.write(1);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.order(Command::Stop(oneshot::channel().0));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the BFD thread failed");
        }
    }
}

impl Watch {
    /// Makes this speaker's sessions exactly these. What they stand at already is told as an event. Of two
    /// speakers that want a session with different timing the older one's counts.
    pub fn follow(&self, sessions: BTreeMap<Key, Timing>) {
        self.bfd.0.order(Command::Follow(self.owner, sessions));
    }

    /// The next session that changes; `None`: the thread has ended.
    pub async fn changed(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.bfd.0.order(Command::Forget(self.owner));
    }
}

/// What the thread owns.
struct Engine {
    bfd: bfd::Bfd,
    incoming: Incoming,
    outgoing: Outgoing,
    owners: BTreeMap<u64, Owner>,
    wake: Arc<EventFd>,
}

impl Engine {
    fn run(mut self, commands: &Receiver<Command>) {
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            info!(%error, "BFD runs at ordinary priority: on a busy host short detection times may be missed (RLIMIT_NICE or CAP_SYS_NICE allows more)");
        }
        loop {
            if let Some(answer) = self.obey(commands) {
                self.bfd.leave_all(now());
                self.send();
                // Who asked may not wait any more.
                let _ = answer.send(());
                return;
            }
            self.receive();
            self.bfd.handle_timeout(now());
            self.send();
            while let Some(event) = self.bfd.poll_event() {
                self.tell(event);
            }
            self.sleep();
        }
    }

    /// Does what was ordered; with whom to tell, to stop.
    fn obey(&mut self, commands: &Receiver<Command>) -> Option<oneshot::Sender<()>> {
        loop {
            match commands.try_recv() {
                Ok(Command::Watch(owner, events)) => {
                    let sessions = BTreeMap::new();
                    self.owners.insert(owner, Owner { sessions, events });
                }
                Ok(Command::Follow(owner, sessions)) => self.follow(owner, sessions),
                Ok(Command::Forget(owner)) => {
                    self.owners.remove(&owner);
                    self.settle();
                }
                Ok(Command::Snapshot(answer)) => {
                    // An asker that went away does not want its answer.
                    let _ = answer.send(BfdSnapshot {
                        sessions: self.bfd.sessions(now()),
                        discarded: self.bfd.discarded().clone(),
                    });
                }
                Ok(Command::Stop(answer)) => return Some(answer),
                Err(TryRecvError::Disconnected) => return Some(oneshot::channel().0),
                Err(TryRecvError::Empty) => return None,
            }
        }
    }

    fn follow(&mut self, owner: u64, sessions: BTreeMap<Key, Timing>) {
        let Some(known) = self.owners.get_mut(&owner) else {
            return;
        };
        let before = std::mem::replace(&mut known.sessions, sessions);
        for key in known.sessions.keys().filter(|k| !before.contains_key(k)) {
            if let Some(standing) = self.bfd.standing(key) {
                let event = Event {
                    key: *key,
                    standing,
                };
                // A speaker that has ended is about to be forgotten.
                let _ = known.events.send(event);
            }
        }
        self.settle();
    }

    fn settle(&mut self) {
        let mut wanted: BTreeMap<Key, Timing> = BTreeMap::new();
        for owner in self.owners.values() {
            for (key, timing) in &owner.sessions {
                wanted.entry(*key).or_insert(*timing);
            }
        }
        self.bfd.set_sessions(&wanted, now());
    }

    fn receive(&mut self) {
        while let Some((arrived, bytes)) = self.incoming.next() {
            self.bfd.handle_packet(arrived, bytes, now());
        }
    }

    fn send(&mut self) {
        while let Some(transmit) = self.bfd.poll_transmit() {
            self.outgoing.send(&transmit);
        }
        self.outgoing.retain(|key| self.bfd.standing(key).is_some());
    }

    fn tell(&self, event: Event) {
        let standing = event.standing;
        info!(session = %event.key, state = %standing.state, diagnostic = %standing.diagnostic, "BFD");
        for owner in self.owners.values() {
            if owner.sessions.contains_key(&event.key) {
                // A speaker that has ended is about to be forgotten.
                let _ = owner.events.send(event);
            }
        }
    }

    /// Until a packet, an order or the next timer.
    fn sleep(&mut self) {
        let wait = self
            .bfd
            .poll_timeout()
            .map(|at| at.saturating_duration_since(now()));
        if wait == Some(Duration::ZERO) {
            return;
        }
        let mut polled: Vec<_> = self.incoming.descriptors().collect();
        polled.push(self.wake.as_fd());
        let mut polled: Vec<_> = polled
            .into_iter()
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        // An interruption is a reason to look as good as any.
        let _ = ppoll(&mut polled, wait.map(TimeSpec::from_duration), None);
        let _ = self.wake.read();
    }
}

fn now() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "an edge: this is the engine's clock"
    )]
    Instant::now()
}
