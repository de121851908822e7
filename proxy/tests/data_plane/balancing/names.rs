//! Targets that are given as names are resolved again.

use super::*;

#[test]
fn names_are_resolved_again_when_their_records_run_out() {
    block_on(async {
        let service = Service::start("a");
        let port = service.address().port();
        let dns = DnsServer::start(1).await;
        dns.set(&["127.0.0.1"]);
        let document =
            upstream(&[], "").replace("targets: []", &format!("targets: [{{address: 'users.test:{port}'}}]"));
        let harness = Harness::with(&document, |settings| settings.dns_servers = vec![dns.address]);
        let targets = || {
            harness.proxy.counted(|_, compiled, _, _| {
                let upstream = compiled.active.upstreams.iter().next().unwrap();
                upstream
                    .members
                    .view()
                    .targets
                    .iter()
                    .map(|it| it.address.ip().to_string())
                    .collect::<Vec<_>>()
            })
        };
        until("the name is resolved", || targets() == ["127.0.0.1"]).await;
        let mut client = Client::connect(harness.address()).await;
        assert_eq!(client.get("/").await.text(), "a");
        // Each address is a target.
        let changed = Instant::now();
        dns.set(&["127.0.0.1", "127.0.0.3"]);
        until("there are two", || targets() == ["127.0.0.1", "127.0.0.3"]).await;
        assert!(changed.elapsed() < Duration::from_secs(5), "its time to live is a second");
        let served = shares(&mut client, 20).await;
        assert_eq!(served["a"], 10, "nobody listens at the other: {served:?}");
        let asked = dns.asked();
        // A server that fails removes no address, and does not cause a change of address family.
        dns.fail(true);
        until("it was asked", || dns.asked() > asked + 1).await;
        assert_eq!(targets(), ["127.0.0.1", "127.0.0.3"]);
        dns.set(&["127.0.0.1"]);
        dns.fail(false);
        until("there is one", || targets() == ["127.0.0.1"]).await;
        assert_eq!(shares(&mut client, 10).await["a"], 10);
        dns.set(&[]);
        until("IPv6 is all there is", || targets() == ["::1"]).await;
    });
}

#[test]
fn new_names_are_looked_up_all_at_a_time() {
    block_on(async {
        // A name server that does not answer.
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let dns = silent.local_addr().unwrap();
        let upstreams: Vec<_> = (0..10)
            .map(|it| {
                format!(
                    "{{name: u{it}, targets: [{{address: 'a{it}.test:80'}}, {{address: 'b{it}.test:80'}}]}}"
                )
            })
            .collect();
        let mut harness = Harness::with("{}", |settings| settings.dns_servers = vec![dns]);
        let began = Instant::now();
        harness.apply(&format!("upstreams: [{}]", upstreams.join(", "))).unwrap();
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(290), "a first address is waited for: {took:?}");
        assert!(took < Duration::from_secs(5), "but not for each: {took:?}");
    });
}

/// A DNS server for any name, over UDP: it has the given A records, and `::1`.
struct DnsServer {
    address: SocketAddr,
    answers: Arc<Mutex<Vec<Ipv4Addr>>>,
    fails: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl DnsServer {
    async fn start(ttl: u32) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let answers = Arc::<Mutex<Vec<Ipv4Addr>>>::default();
        let (fails, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (its, failing, counted) = (Arc::clone(&answers), Arc::clone(&fails), Arc::clone(&asked));
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                let query = &buffer[..length];
                // The question follows the header: labels, an empty label, type and class.
                let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
                let is_a = query[end - 4..end - 2] == [0, 1];
                let found: Vec<Vec<u8>> = match is_a {
                    true => its.lock().unwrap().iter().map(|ip| ip.octets().to_vec()).collect(),
                    false => vec![Ipv6Addr::LOCALHOST.octets().to_vec()],
                };
                counted.fetch_add(usize::from(is_a), Ordering::Relaxed);
                let fails = is_a && failing.load(Ordering::Relaxed);
                let mut answer = BytesMut::new();
                answer.put_slice(&query[..2]);
                // The flags are: response, recursion available; the other value is SERVFAIL.
                answer.put_u16(if fails { 0x8182 } else { 0x8180 });
                answer.put_u16(1);
                answer.put_u16(if fails { 0 } else { found.len() as u16 });
                answer.put_u32(0);
                answer.put_slice(&query[12..end]);
                for ip in found.iter().filter(|_| !fails) {
                    // The name, type and class of the question.
                    answer.put_slice(&[0xc0, 12]);
                    answer.put_slice(&query[end - 4..end]);
                    answer.put_u32(ttl);
                    answer.put_u16(ip.len() as u16);
                    answer.put_slice(ip);
                }
                let _ = socket.send_to(&answer, peer).await;
            }
        });
        Self { address, answers, fails, asked }
    }

    fn set(&self, addresses: &[&str]) {
        *self.answers.lock().unwrap() = addresses.iter().map(|it| it.parse().unwrap()).collect();
    }

    fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::Relaxed);
    }

    /// The number of queries for A records.
    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}
