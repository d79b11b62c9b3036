//! Conversations with the kernel of a namespace.

use fairlead_control::host::Netlink;

use crate::netns::Netns;

/// Runs asynchronous work inside a namespace, with a conversation with its kernel.
///
/// # Panics
/// The namespace is not there, or there is no netlink in it.
pub fn on<R: Send>(netns: &Netns, work: impl AsyncFnOnce(Netlink) -> R + Send) -> R {
    netns
        .enter(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("starting the async runtime")
                .block_on(async { work(Netlink::open().expect("opening netlink")).await })
        })
        .expect("entering the namespace")
}
