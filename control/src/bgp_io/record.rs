//! Writes down what speakers are told, and tells it to others later.
//!
//! A recording is a file of JSON lines, each a [`Recorded`]. It is written as things happen, in front of them: what
//! brought the process down is in it. It costs a disk's time per message, and nothing where nobody records.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use fairlead_bgp::SpeakerConfig;
use fairlead_bgp::record::{Input, Passwords, Recorded, Replay};
use tracing::error;

/// A file that speakers are recorded in.
#[derive(Debug, Clone)]
pub struct Recorder {
    file: Arc<File>,
    begin: Instant,
    speakers: Arc<AtomicU32>,
}

impl Recorder {
    /// Begins a recording in the place of what the file held. Only its owner may read it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        // A line is one write, and appended: those of several speakers do not mix.
        File::create(path)?;
        let file = OpenOptions::new().append(true).mode(0o600).open(path)?;
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(Self {
            file: Arc::new(file),
            begin: now(),
            speakers: Arc::default(),
        })
    }

    /// The record of a speaker that begins now.
    pub(super) fn begin(&self, config: &SpeakerConfig, seed: u64) -> Record {
        let mut record = Record {
            speaker: self.speakers.fetch_add(1, Ordering::Relaxed),
            recorder: self.clone(),
            passwords: Passwords::default(),
            has_failed: false,
        };
        record.write(Input::Begin(config.clone(), seed), now());
        record
    }
}

/// The record of one speaker.
#[derive(Debug)]
pub(super) struct Record {
    recorder: Recorder,
    speaker: u32,
    pub(super) passwords: Passwords,
    has_failed: bool,
}

impl Record {
    /// Writes down an input; after a failure no more, for a recording with a gap is none.
    pub(super) fn write(&mut self, input: Input, now: Instant) {
        if self.has_failed {
            return;
        }
        let recorded = Recorded {
            speaker: self.speaker,
            at: now.saturating_duration_since(self.recorder.begin),
            input,
        };
        let written = serde_json::to_vec(&recorded)
            .map_err(io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                (&*self.recorder.file).write_all(&line)
            });
        if let Err(error) = written {
            error!(%error, "the recording of BGP ends here");
            self.has_failed = true;
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.write(Input::End, now());
    }
}

/// Tells new speakers what a recording says.
///
/// # Errors
/// The file cannot be read, a line of it is no input, or it lacks its beginning. A last line without an end is
/// what a killed process was about to say, and is left out.
pub fn replay(path: &Path) -> Result<Replay> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut lines = BufReader::new(file);
    let origin = now();
    let mut replay = Replay::new(origin);
    let mut line = String::new();
    for number in 1.. {
        line.clear();
        let read = lines.read_line(&mut line);
        read.with_context(|| format!("reading {}", path.display()))?;
        if !line.ends_with('\n') {
            break;
        }
        let at = || format!("{} line {number}", path.display());
        let recorded: Recorded = serde_json::from_str(&line).with_context(|| {
            format!("{}: this is no recording of `fairlead run --record`", at())
        })?;
        replay.tell(recorded, origin).with_context(at)?;
    }
    Ok(replay)
}

fn now() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "an edge: a recording begins when it is begun"
    )]
    Instant::now()
}
