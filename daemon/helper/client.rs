//! A helper's end of the connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::protocol::{Answer, Condition, Opening, Report};

/// A connection to podsecd.
#[derive(Debug)]
pub struct Client(BufReader<UnixStream>);

/// Longest answer, in bytes.
const MAX_ANSWER: u64 = 16 << 10;

impl Client {
    /// Connects, and says which conditions are open. `patience` is how long an answer may take.
    ///
    /// # Errors
    /// Those of connect(2); podsecd does not answer, or does not take what was said.
    pub fn connect(socket: &Path, patience: Duration, conditions: &[Condition]) -> io::Result<Client> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut client = Client(BufReader::new(stream));
        client.ask(&Opening { conditions, all: true })?;
        Ok(client)
    }

    /// Reports; podsecd will not lose it any more.
    ///
    /// # Errors
    /// podsecd does not answer, or does not take it.
    pub fn report(&mut self, report: &Report) -> io::Result<()> {
        self.ask(report)
    }

    fn ask(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(line)?;
        line.push(b'\n');
        self.0.get_mut().write_all(&line)?;
        let mut answer = Vec::new();
        self.0.by_ref().take(MAX_ANSWER).read_until(b'\n', &mut answer)?;
        if answer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match serde_json::from_slice(&answer)? {
            Answer::Taken => Ok(()),
            Answer::Refused(why) | Answer::Later(why) => Err(io::Error::other(why)),
        }
    }
}
