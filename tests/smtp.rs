//! An SMTP server (RFC 5321) that does what it is told: a stand-in for the servers that misbehave. The node tests have a
//! real postfix.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Where in a session; a session of one message passes them in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Greeting,
    Hello,
    Sender,
    Recipient,
    Data,
    /// The message is there.
    Dot,
    /// The client takes its leave.
    #[allow(dead_code, reason = "the torture, which has this file too, does without")]
    Farewell,
}

/// What the server does there.
#[derive(Clone, Debug)]
pub(crate) enum Does {
    /// Says this instead of agreeing.
    Says(&'static str),
    /// Closes the connection.
    Closes,
    /// Says nothing, for so long.
    Hangs(Duration),
    /// Sends this again and again.
    Floods(&'static [u8]),
    /// Takes the message, and closes the connection without a word. Only for [`Stage::Dot`].
    TakesAndCloses,
}

/// How one message is treated; `None`: as it should be.
pub(crate) type Script = Option<(Stage, Does)>;

/// The server; it lives as long as the process.
#[derive(Clone)]
pub(crate) struct Smtp {
    pub(crate) address: SocketAddr,
    taken: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Smtp {
    /// Starts it. `script` is asked at each connection, and with the message when that is there.
    pub(crate) fn start(script: impl Fn(Option<&[u8]>) -> Script + Send + Sync + 'static) -> Smtp {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let smtp = Smtp { address: listener.local_addr().expect("bound"), taken: Arc::default() };
        let (server, script) = (smtp.clone(), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (server, script) = (server.clone(), Arc::clone(&script));
                // An error is that of a peer that is gone.
                thread::spawn(move || drop(server.serve(stream, &*script)));
            }
        });
        smtp
    }

    /// The messages that it took, as they were sent.
    pub(crate) fn taken(&self) -> Vec<Vec<u8>> {
        self.taken.lock().expect("not poisoned").clone()
    }

    fn serve(&self, mut stream: TcpStream, script: &dyn Fn(Option<&[u8]>) -> Script) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let planned = script(None);
        let reach = |stream: &mut TcpStream, stage: Stage, planned: &Script, agree: &str| {
            let does = planned.as_ref().filter(|(at, _)| *at == stage).map(|(_, does)| does);
            match does {
                None => stream.write_all(agree.as_bytes()).map(|()| true),
                Some(Does::Says(words)) => stream.write_all(words.as_bytes()).map(|()| true),
                Some(Does::Closes | Does::TakesAndCloses) => Ok(false),
                Some(Does::Hangs(time)) => {
                    thread::sleep(*time);
                    Ok(false)
                }
                Some(Does::Floods(bytes)) => loop {
                    stream.write_all(bytes)?;
                },
            }
        };
        if !reach(&mut stream, Stage::Greeting, &planned, "220 test ESMTP\r\n")? {
            return Ok(());
        }
        let mut line = String::new();
        while {
            line.clear();
            reader.by_ref().take(4096).read_line(&mut line)?
        } > 0
        {
            let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
            let (stage, agree) = match verb.as_str() {
                "EHLO" | "HELO" => (Stage::Hello, "250 test\r\n"),
                "MAIL" => (Stage::Sender, "250 ok\r\n"),
                "RCPT" => (Stage::Recipient, "250 ok\r\n"),
                "DATA" => (Stage::Data, "354 go on\r\n"),
                "QUIT" => return reach(&mut stream, Stage::Farewell, &planned, "221 bye\r\n").map(drop),
                _ => {
                    stream.write_all(b"250 ok\r\n")?;
                    continue;
                }
            };
            if !reach(&mut stream, stage, &planned, agree)? {
                return Ok(());
            }
            if stage == Stage::Data && !matches!(planned, Some((Stage::Data, _))) {
                let message = read_message(&mut reader)?;
                let planned = planned.clone().or_else(|| script(Some(&message)));
                let takes = match &planned {
                    Some((Stage::Dot, does)) => matches!(does, Does::TakesAndCloses),
                    _ => true,
                };
                if takes {
                    self.taken.lock().expect("not poisoned").push(message);
                }
                if !reach(&mut stream, Stage::Dot, &planned, "250 taken\r\n")? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// The message up to its final dot, without the dots that were doubled.
fn read_message(reader: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let (mut message, mut line) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line == b".\r\n" {
            return Ok(message);
        }
        message.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
    }
}
