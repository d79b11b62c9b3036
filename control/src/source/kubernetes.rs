//! The API server, watched: the same objects as from manifests, changed one by one.
//!
//! ```text
//!   API server ──(watch: a task per kind)──> Read ──> Replica ──> Resources
//!                                                       │ ▲
//!                                        every few      ▼ │  at the start
//!                                        seconds     snapshot
//! ```
//! [`Replica`] is the pure half: what was heard in, what changed out. [`Kubernetes`] is the edge that watches.
//!
//! # Why
//! The first answer waits until every watch has told all it has, as manifests do: what is withdrawn for a moment
//! at the start of an agent is withdrawn from the routers too. When the server does not answer, the state of
//! before stays in force; at a start that state comes from the snapshot in the state folder.
//!
//! Not here: what the objects mean (`desired::merge`).

pub mod kinds;
mod read;
mod replica;
mod snapshot;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use tracing::{info, warn};

use self::kinds::{KINDS, WatchId};
use self::replica::Replica;
use self::watch::Heard;
use super::Resources;
use crate::config::document;

pub use self::snapshot::{file as snapshot_file, read as read_snapshot};

/// How long an agent that has a snapshot waits for the server before it goes on with that.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a changed state is written down.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(5);
/// How often is told before a watch has to wait, up to [`watch::AT_ONCE`] each time; and how much of it makes one change
/// at most.
const BACKLOG: usize = 16;

/// Why there is nothing to watch.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The kubeconfig does not say where and as whom.
    #[error("kubernetes.kubeconfig: {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// There is no kubeconfig, and this is no pod with a service account.
    #[error("kubernetes.kubeconfig is not set and this is no pod with a service account: {0}")]
    NotInCluster(#[from] kube::config::InClusterError),
    /// The address of the API server is none.
    #[error("kubernetes.apiServer: {server:?}: {why}; write https://HOST:PORT")]
    Address {
        /// What was written.
        server: String,
        /// Why not.
        why: String,
    },
    /// No client could be made of it.
    #[error("the way to the API server: {0}")]
    Client(#[from] kube::Error),
}

/// A cluster that is watched.
pub struct Kubernetes {
    client: kube::Client,
    server: Arc<str>,
    snapshot: PathBuf,
    replica: Replica,
    watches: BTreeMap<WatchId, AbortHandle>,
    contact: Option<AbortHandle>,
    tell: mpsc::Sender<Vec<Heard>>,
    heard: mpsc::Receiver<Vec<Heard>>,
    /// Until when the first answer is held back though the server is silent; never, without a snapshot.
    patience: Option<Instant>,
    /// Whether the first answer has been given.
    is_released: bool,
    /// When the state is written down next; none while nothing has changed.
    write_at: Option<Instant>,
    writing: Option<JoinHandle<()>>,
    now: fn() -> Instant,
}

impl Kubernetes {
    /// Begins to watch; reads the snapshot of an earlier agent from `state`. `secrets` is the namespace of the
    /// Secrets that peering policies name, `node` this node's name. `resources` is what [`Self::next`] changes.
    ///
    /// # Errors
    /// It is not known where the API server is; whether it answers is not asked.
    pub async fn open(
        config: &document::Kubernetes,
        secrets: &str,
        node: &str,
        state: &Path,
        now: fn() -> Instant,
        resources: &mut Resources,
    ) -> Result<Self, Unusable> {
        let way = way_to(config).await?;
        let server: Arc<str> = way.cluster_url.to_string().trim_end_matches('/').into();
        let client = kube::Client::try_from(way)?;
        let (tell, heard) = mpsc::channel(BACKLOG);
        let mut replica = Replica::new(Arc::clone(&server), secrets, node);
        let mut patience = None;
        let file = snapshot::file(state);
        match snapshot::load(&file) {
            Ok(Some(snapshot)) => {
                info!(taken = %snapshot.taken_at, file = %file.display(), "snapshot read");
                replica.restore(snapshot, resources);
                patience = Some(now() + PATIENCE);
            }
            Ok(None) => {}
            Err(why) => warn!(file = %file.display(), why, "the snapshot is not used"),
        }
        let mut kubernetes = Self {
            client,
            server,
            snapshot: file,
            replica,
            watches: BTreeMap::new(),
            contact: None,
            tell,
            heard,
            patience,
            is_released: false,
            write_at: None,
            writing: None,
            now,
        };
        for (kind, watched) in KINDS.iter().enumerate() {
            if !watched.is_by_name {
                kubernetes.watch(WatchId { kind, name: None });
            }
        }
        kubernetes.follow_names(resources);
        let contact = watch::contact(kubernetes.client.clone(), kubernetes.tell.clone());
        kubernetes.contact = Some(tokio::spawn(contact).abort_handle());
        Ok(kubernetes)
    }

    /// The client, for what is written.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// Waits for a change and makes it in `resources`, the same each time: the first time all that there is, later
    /// what has changed. Cancel-safe: what has been heard has been made, and is told when it is whole.
    pub async fn next(&mut self, resources: &mut Resources) {
        loop {
            let patience = self.patience.filter(|_| !self.is_released);
            let heard = tokio::select! {
                heard = self.heard.recv() => heard,
                () = until(patience) => {
                    self.is_released = true;
                    return;
                }
                () = until(self.write_at) => {
                    self.write_down();
                    continue;
                }
            };
            let mut has_changed = false;
            for heard in burst(heard, &mut self.heard) {
                has_changed |= self.replica.hear(heard, jiff::Timestamp::now(), resources);
            }
            self.follow_names(resources);
            if has_changed && self.replica.is_complete() && self.write_at.is_none() {
                let soon = (self.now)() + SNAPSHOT_EVERY;
                self.write_at = Some(soon);
            }
            if !self.is_released && self.replica.is_complete() {
                self.is_released = true;
                self.write_down();
                return;
            }
            if has_changed && self.is_released {
                return;
            }
        }
    }

    /// Watches exactly those objects by name that others name.
    fn follow_names(&mut self, resources: &mut Resources) {
        let wanted = self.replica.named().clone();
        let gone: Vec<WatchId> = self
            .watches
            .keys()
            .filter(|id| id.name.is_some() && !wanted.contains(id))
            .cloned()
            .collect();
        for id in gone {
            if let Some(task) = self.watches.remove(&id) {
                task.abort();
            }
            self.replica.forget(&id, resources);
        }
        for id in wanted {
            if !self.watches.contains_key(&id) {
                self.watch(id);
            }
        }
    }

    fn watch(&mut self, id: WatchId) {
        self.replica.expect(&id);
        let server = Arc::clone(&self.server);
        let task = watch::follow(self.client.clone(), server, id.clone(), self.tell.clone());
        self.watches.insert(id, tokio::spawn(task).abort_handle());
    }

    fn write_down(&mut self) {
        self.write_at = None;
        if self
            .writing
            .as_ref()
            .is_some_and(|task| !task.is_finished())
        {
            // A disk that slow gets another chance.
            self.write_at = Some((self.now)() + SNAPSHOT_EVERY);
            return;
        }
        let (objects, file) = (self.replica.objects(), self.snapshot.clone());
        self.writing = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = snapshot::store(&file, &objects, jiff::Timestamp::now()) {
                warn!(%error, file = %file.display(), "writing the snapshot");
            }
        }));
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        for task in self.watches.values().chain(&self.contact) {
            task.abort();
        }
    }
}

/// What was heard first and what has been heard since; what is over stays for the next time.
fn burst(
    first: Option<Vec<Heard>>,
    heard: &mut mpsc::Receiver<Vec<Heard>>,
) -> impl Iterator<Item = Heard> {
    let since = std::iter::from_fn(|| heard.try_recv().ok());
    first.into_iter().chain(since).take(BACKLOG).flatten()
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

async fn way_to(config: &document::Kubernetes) -> Result<kube::Config, Unusable> {
    let mut way = match &config.kubeconfig {
        Some(path) => {
            let unusable = |source| Unusable::Kubeconfig {
                path: path.clone(),
                source,
            };
            let kubeconfig = Kubeconfig::read_from(path).map_err(unusable)?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .map_err(unusable)?
        }
        None => kube::Config::incluster()?,
    };
    if let Some(server) = &config.api_server {
        way.cluster_url = server.parse().map_err(|why| Unusable::Address {
            server: server.clone(),
            why: format!("{why}"),
        })?;
    }
    way.connect_timeout = Some(watch::ANSWER);
    Ok(way)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_longer_than_one_change_loses_nothing() {
        let (tell, mut heard) = mpsc::channel(2 * BACKLOG);
        for _ in 0..BACKLOG + 5 {
            tell.try_send(vec![Heard::Contact, Heard::Contact]).unwrap();
        }

        let first = heard.try_recv().ok();
        assert_eq!(burst(first, &mut heard).count(), 2 * BACKLOG);
        assert_eq!(burst(None, &mut heard).count(), 10);
    }
}
