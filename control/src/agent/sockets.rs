//! Keeps the programs for sockets on their cgroup as long as there are services for sockets.
//!
//! Where there are none, no connection pays for the question.

use std::path::{Path, PathBuf};

use tracing::info;

use crate::api::types;
use crate::config::document::SocketLoadBalancing;
use crate::dataplane::load::Loaded;
use crate::dataplane::sockets;
use crate::desired::Condition;
use crate::host::{self, cgroup, namespace};

/// What this agent has done about sockets.
#[derive(Debug, Default)]
pub enum Sockets {
    /// Nothing yet: an earlier agent's programs may be there.
    #[default]
    Unknown,
    /// The programs are nowhere.
    Off,
    /// They are on this cgroup.
    On(PathBuf),
}

/// What a look at the sockets found.
#[derive(Debug, Default)]
pub struct Found {
    /// The programs, for people.
    pub attachment: Option<types::Attachment>,
    /// What stands in the way.
    pub condition: Option<Condition>,
}

impl Sockets {
    /// Attaches the programs when a service `is_wanted` by sockets, and detaches them when none is.
    pub fn follow(
        &mut self,
        loaded: &Loaded,
        config: &SocketLoadBalancing,
        is_wanted: bool,
    ) -> Found {
        let place = match place(config) {
            Ok(place) => place.filter(|_| is_wanted),
            Err(message) => return Found::trouble(config.cgroup.as_deref(), message),
        };
        let outcome = match (&place, &*self) {
            (Some(wanted), Self::On(at)) if wanted == at => Ok(()),
            (Some(wanted), _) => loaded.attach_sockets(wanted).map(|were_there| {
                info!(cgroup = %wanted.display(), taken_over = were_there, "attached to sockets");
            }),
            (None, Self::Off) => Ok(()),
            (None, _) => sockets::detach(&loaded.pins).map(|were_there| {
                if were_there {
                    info!("detached from sockets");
                }
            }),
        };
        if let Err(error) = outcome {
            *self = Self::Unknown;
            return Found::trouble(place.as_deref(), error.to_string());
        }
        let attachment = place.as_deref().map(|at| attachment(at, "link", true));
        *self = place.map_or(Self::Off, Self::On);
        Found {
            attachment,
            condition: None,
        }
    }
}

impl Found {
    fn trouble(place: Option<&Path>, message: String) -> Self {
        let place = place.unwrap_or(Path::new("cgroup"));
        let state = format!("not attached: {message}");
        Self {
            attachment: Some(attachment(place, &state, false)),
            condition: Some(Condition {
                object: "sockets".to_owned(),
                origin: String::new(),
                reason: "SocketsNotAttached".to_owned(),
                message,
            }),
        }
    }
}

fn attachment(place: &Path, state: &str, attached: bool) -> types::Attachment {
    types::Attachment {
        device: place.display().to_string(),
        program: "sockets".to_owned(),
        state: state.to_owned(),
        attached,
    }
}

/// The cgroup whose sockets are meant; an error says what to do.
fn place(config: &SocketLoadBalancing) -> Result<Option<PathBuf>, String> {
    if !config.enabled {
        return Ok(None);
    }
    if let Some(path) = &config.cgroup {
        return Ok(Some(path.clone()));
    }
    let say = |error: host::Error| format!("{error}; name a cgroup: socketLoadBalancing.cgroup");
    if !namespace::is_the_hosts().map_err(say)? {
        return Ok(None);
    }
    cgroup::root().map_err(say)?.map(Some).ok_or_else(|| {
        "no cgroup2 is mounted: `mount -t cgroup2 none /sys/fs/cgroup` (as root) makes one"
            .to_owned()
    })
}
