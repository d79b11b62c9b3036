//! What a start says while it goes on, waiting for what takes time, and stopping when the person stops it.
//!
//! Not for what is waited for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::workspace::now;

const PAUSE: Duration = Duration::from_millis(100);

/// Since when, and whether someone wants it to stop.
pub struct Progress {
    began: Instant,
    interrupted: Arc<AtomicBool>,
}

impl Progress {
    pub fn start() -> Self {
        Self {
            began: now(),
            interrupted: Arc::default(),
        }
    }

    /// Prints what has been done, with the seconds since the start.
    pub fn step(&self, what: &str) {
        println!("{:6.1} s  {what}", self.began.elapsed().as_secs_f32());
    }

    /// From now on SIGINT and SIGTERM end the next wait with an error instead of ending the program, so that
    /// what was made can be taken away. Programs that are started get the signals as ever: they are not held
    /// back, which a child would inherit.
    pub fn listen(&self) -> Result<()> {
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&self.interrupted))
                .context("listening for signals")?;
        }
        Ok(())
    }

    /// Repeats a question until it is answered with `Some`.
    ///
    /// # Errors
    /// Time is over, with the last thing that stood in the way; or the question failed; or a signal came.
    pub fn wait<T>(
        &self,
        what: &str,
        seconds: u64,
        mut question: impl FnMut() -> Result<Result<T, String>>,
    ) -> Result<T> {
        let began = now();
        loop {
            let obstacle = match question().with_context(|| format!("waiting for {what}"))? {
                Ok(answer) => return Ok(answer),
                Err(obstacle) => obstacle,
            };
            if self.interrupted.load(Ordering::Relaxed) {
                bail!("interrupted while waiting for {what}");
            }
            if began.elapsed() > Duration::from_secs(seconds) {
                bail!("waited {seconds} s for {what}: {obstacle}");
            }
            thread::sleep(PAUSE);
        }
    }
}
