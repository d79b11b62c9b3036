//! The few words of an API server that an agent needs: lists, and watches that are told of changes.
//!
//! It holds its answers back until it is released, so that the agent is ready when they come. Lists come in pages as
//! large as they are asked for, as a real server's do.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use anyhow::Result;

/// A server whose lists do not change.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Each object as JSON, by the plural of its kind.
    objects: BTreeMap<&'static str, Vec<String>>,
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Default)]
struct State {
    is_released: bool,
    watches: BTreeMap<String, Vec<TcpStream>>,
}

impl Server {
    /// Serves these objects, each as JSON, by the plurals of their kinds, at a listener.
    pub fn start(listener: TcpListener, objects: BTreeMap<&'static str, Vec<String>>) -> Self {
        let server = Self {
            shared: Arc::new(Shared {
                objects,
                ..Shared::default()
            }),
        };
        let shared = Arc::clone(&server.shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // A client that leaves ends its thread.
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        server
    }

    /// Answers from now on.
    pub fn release(&self) {
        self.shared.state().is_released = true;
        self.shared.released.notify_all();
    }

    /// How many watches of a kind there are.
    pub fn watches(&self, kind: &str) -> usize {
        self.shared.state().watches.get(kind).map_or(0, Vec::len)
    }

    /// Tells the watches of a kind that an object is another one.
    pub fn modify(&self, kind: &str, object: &str) {
        let event = format!("{{\"type\":\"MODIFIED\",\"object\":{object}}}\n");
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        let mut state = self.shared.state();
        let watches = state.watches.entry(kind.to_owned()).or_default();
        // One that has ended is forgotten.
        watches.retain_mut(|watch| watch.write_all(chunk.as_bytes()).is_ok());
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut lines = BufReader::new(stream.try_clone()?);
        let mut stream = stream;
        loop {
            let mut request = String::new();
            if lines.read_line(&mut request)? == 0 {
                return Ok(());
            }
            let mut header = String::new();
            while lines.read_line(&mut header)? > 2 {
                header.clear();
            }
            let target = request.split(' ').nth(1).unwrap_or_default();
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let kind = path.rsplit('/').next().unwrap_or_default();
            if path == "/version" {
                answer(
                    &mut stream,
                    "200 OK",
                    r#"{"major":"1","minor":"33","gitVersion":"v1.33.0","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}"#,
                )?;
                continue;
            }
            let Some(objects) = self.objects.get(kind) else {
                answer(
                    &mut stream,
                    "404 Not Found",
                    r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"not installed","reason":"NotFound","code":404}"#,
                )?;
                continue;
            };
            if query.contains("watch=true") {
                stream.write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
                )?;
                let mut state = self.state();
                let watches = state.watches.entry(kind.to_owned()).or_default();
                watches.push(stream);
                return Ok(());
            }
            let mut state = self.state();
            while !state.is_released {
                let waited = self.released.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
            }
            drop(state);
            answer(&mut stream, "200 OK", &page(objects, query))?;
        }
    }
}

/// The part of a list that is asked for: `limit` objects at most, from where `continue` says.
fn page(objects: &[String], query: &str) -> String {
    let number = |key: &str| {
        let mut words = query.split('&').filter_map(|word| word.split_once('='));
        let (_, value) = words.find(|(word, _)| *word == key)?;
        value.parse::<usize>().ok()
    };
    let from = number("continue").unwrap_or(0).min(objects.len());
    let end = from.saturating_add(number("limit").unwrap_or(usize::MAX));
    let end = end.min(objects.len());
    let next = if end < objects.len() {
        format!(
            r#","continue":"{end}","remainingItemCount":{}"#,
            objects.len() - end
        )
    } else {
        String::new()
    };
    format!(
        r#"{{"kind":"List","apiVersion":"v1","metadata":{{"resourceVersion":"1"{next}}},"items":[{}]}}"#,
        objects[from..end].join(",")
    )
}

fn answer(stream: &mut TcpStream, status: &str, body: &str) -> Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    Ok(stream.write_all(body.as_bytes())?)
}
