//! One question to a backend, over a socket.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;

use crate::desired::check::{Http, Probe, Target};

/// Asks; the error says in a few words what went wrong.
pub(super) async fn ask(target: &Target) -> Result<(), String> {
    let timeout = target.check.timeout;
    match &target.check.probe {
        Probe::Tcp => in_time(timeout, "connecting", connect(target.at))
            .await
            .map(drop),
        Probe::Http(http) => in_time(timeout, "answering", get(target.at, http)).await,
        Probe::Udp { payload } => {
            // Silence is an answer here.
            let asked = tokio::time::timeout(timeout, send(target.at, payload.as_bytes()));
            asked.await.unwrap_or(Ok(()))
        }
    }
}

async fn in_time<T>(
    timeout: Duration,
    doing: &str,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result,
        Err(_) => Err(format!("not done with {doing} in {timeout:?}")),
    }
}

async fn connect(at: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(at).await.map_err(|error| {
        if error.kind() == ErrorKind::ConnectionRefused {
            "connection refused".to_owned()
        } else {
            format!("connecting: {error}")
        }
    })?;
    // A reset leaves no TIME_WAIT behind, of which frequent checks would make thousands.
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .map_err(|error| format!("setting up the socket: {error}"))?;
    Ok(stream)
}

async fn send(at: SocketAddr, payload: &[u8]) -> Result<(), String> {
    let any = match at {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let failed = |error: std::io::Error| {
        if error.kind() == ErrorKind::ConnectionRefused {
            "port unreachable".to_owned()
        } else {
            format!("asking by UDP: {error}")
        }
    };
    let socket = UdpSocket::bind((any, 0)).await.map_err(failed)?;
    // Connected, so that the kernel tells of ICMP errors.
    socket.connect(at).await.map_err(failed)?;
    socket.send(payload).await.map_err(failed)?;
    socket.recv(&mut [0; 1]).await.map_err(failed)?;
    Ok(())
}

async fn get(at: SocketAddr, http: &Http) -> Result<(), String> {
    let stream = connect(at).await?;
    if !http.tls {
        return request(stream, at, http).await;
    }
    let name = http
        .host
        .as_deref()
        .map(|host| ServerName::try_from(host.to_owned()));
    let name = match name {
        Some(Ok(name)) => name,
        // A host that TLS cannot name is still a good header.
        Some(Err(_)) | None => ServerName::from(at.ip()),
    };
    let stream = tls()?
        .connect(name, stream)
        .await
        .map_err(|error| format!("TLS: {error}"))?;
    request(stream, at, http).await
}

async fn request<S>(stream: S, at: SocketAddr, http: &Http) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| format!("HTTP: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let host = http.host.clone().unwrap_or_else(|| at.to_string());
    let request = hyper::Request::get(&http.path)
        .header(header::HOST, host)
        .header(
            header::USER_AGENT,
            concat!("fairlead/", env!("CARGO_PKG_VERSION")),
        )
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("HTTP: {error}"))?;
    let asked = sender.send_request(request);
    // Both end with this function, so that nothing of a probe outlives it.
    let response = tokio::select! {
        response = asked => response.map_err(failed)?,
        Err(error) = connection => return Err(failed(error)),
    };
    let status = response.status().as_u16();
    let (low, high) = http.status;
    if (low..=high).contains(&status) {
        Ok(())
    } else {
        Err(format!("HTTP status {status}, good are {low} to {high}"))
    }
}

fn tls() -> Result<TlsConnector, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Takes any certificate, as kubelet's probes do: what is asked is whether the backend works.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn asked(at: SocketAddr, check: &str) -> Result<(), String> {
        let check = check.parse().unwrap();
        ask(&Target { at, check }).await
    }

    /// A server that answers each connection with these bytes; what was asked comes back.
    async fn server(answer: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = vec![0; 1024];
            let length = stream.read(&mut read).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(read[..length].to_vec()).unwrap()
        });
        (at, served)
    }

    /// A port that nobody listens on.
    async fn closed() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    }

    #[tokio::test]
    async fn tcp_asks_for_a_connection() {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();

        assert_eq!(asked(listener.local_addr().unwrap(), "tcp").await, Ok(()));
        assert_eq!(
            asked(closed().await, "tcp").await,
            Err("connection refused".to_owned())
        );
    }

    #[tokio::test]
    async fn http_asks_with_path_and_host_and_judges_the_status() {
        let (at, served) = server("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(
            asked(at, "http/healthz?full=1 host=web.example").await,
            Ok(())
        );
        let request = served.await.unwrap();
        assert!(
            request.starts_with("GET /healthz?full=1 HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(request.contains("host: web.example\r\n"), "{request}");

        let (at, _served) = server("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(
            asked(at, "http").await,
            Err("HTTP status 500, good are 200 to 399".to_owned())
        );
        let (at, _served) = server("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(asked(at, "http status=500").await, Ok(()));
        let (at, _served) = server("220 mail.example ESMTP\r\n").await;
        assert!(asked(at, "http").await.unwrap_err().starts_with("HTTP: "));
    }

    #[tokio::test]
    async fn a_backend_that_hangs_fails_by_its_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let _silent = tokio::spawn(async move {
            let _held = listener.accept().await.unwrap();
            pending::<()>().await;
        });

        assert_eq!(
            asked(at, "http timeout=200ms").await,
            Err("not done with answering in 200ms".to_owned())
        );
    }

    #[tokio::test]
    async fn udp_takes_silence_for_good_and_an_unreachable_port_for_bad() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        assert_eq!(asked(at, "udp payload=ping timeout=100ms").await, Ok(()));
        let mut payload = [0; 16];
        let length = socket.recv(&mut payload).await.unwrap();
        assert_eq!(&payload[..length], b"ping");

        drop(socket);
        assert_eq!(asked(at, "udp").await, Err("port unreachable".to_owned()));
    }
}
