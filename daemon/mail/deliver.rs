//! One delivery of one message, in a process of its own ([`super::attempt`]): a server may hang, or answer without end.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use lettre::Address;
use lettre::address::Envelope;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{SmtpConnection, TlsParameters};
use lettre::transport::smtp::extension::ClientId;

use super::attempt::MAX_WORDS;
use super::message::{message_id, sender, without_attachment};
use super::{Answer, maildir};
use crate::config::{self, Config, Root, Tls, Transport};
use crate::report::digest::mail::is_sealed;
use crate::report::digest::period::host;
use crate::watch::open::open_regular;

/// How long a server may take for an answer; after the final dot RFC 5321 (4.5.3.2.6) gives it ten minutes.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long a server may take for its farewell.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long a sendmail that has ended may take to have said why.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Largest message, in bytes. Digests are smaller.
const MAX_MESSAGE: u64 = 32 << 20;
/// Name of the credential (systemd.exec(5), LoadCredential=) with the password.
const PASSWORD: &str = "smtp-password";
/// What podsecd-mail.service sets where there is no file.
const NO_PASSWORD: &str = "-";

/// Delivers the message in `file`; `bare`: without its attachment. Calls `taken` when it is taken.
pub(super) fn deliver(file: &Path, bare: bool, config: &Config, root: &Root, taken: impl Fn()) -> Answer {
    let message = match read(file) {
        Ok(message) if message.len() as u64 <= MAX_MESSAGE => message,
        Ok(_) => return Answer::Refused(format!("{} is larger than 32 MiB", file.display())),
        Err(error) => return Answer::Later(format!("{} cannot be read: {error}", file.display())),
    };
    let id = message_id(&message).filter(|_| is_sealed(&message)).map(str::to_owned);
    let Some(id) = id else {
        return Answer::Refused(format!("{} is no digest, or was changed since it was made", file.display()));
    };
    let message = if bare { without_attachment(&message) } else { message };
    // With --root reports never leave the tree.
    let transport = if root.is_elsewhere() { Transport::Maildir } else { config.mail.transport };
    let envelope = Envelope::new(sender(&message), vec![config.digest.to.get().clone()]);
    let answer = match (transport, envelope) {
        (Transport::Maildir, _) => match maildir::put(&root.path(&config.mail.maildir), &id, &message) {
            Ok(()) => Answer::Taken,
            // It may be this message for which there is no room.
            Err(error) => Answer::Left(format!("{}: {error}", config.mail.maildir.as_ref().display())),
        },
        (Transport::Sendmail, Ok(envelope)) => by_sendmail(config.mail.sendmail.as_ref(), &envelope, &message),
        (Transport::Smtp, Ok(envelope)) => return by_smtp(&envelope, &message, &config.mail, taken),
        (_, Err(error)) => Answer::Refused(error.to_string()),
    };
    if answer == Answer::Taken {
        taken();
    }
    answer
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    use io::Read;
    let mut message = Vec::new();
    open_regular(file)?.take(MAX_MESSAGE + 1).read_to_end(&mut message)?;
    Ok(message)
}

fn by_smtp(envelope: &Envelope, message: &[u8], mail: &config::Mail, taken: impl Fn()) -> Answer {
    // Whatever goes wrong before the message is offered says nothing about the message.
    let mut connection = match connect(mail) {
        Ok(connection) => connection,
        Err(why) => return Answer::Away(why),
    };
    // It ends the last line itself.
    match connection.send(envelope, message.strip_suffix(b"\r\n").unwrap_or(message)) {
        Ok(_) => {
            taken();
            // Whatever the server does now, this ends.
            thread::spawn(|| {
                thread::sleep(FAREWELL);
                std::process::exit(0)
            });
            let _ = connection.quit();
            Answer::Taken
        }
        Err(error) => judge(&error),
    }
}

/// What a server's answer to a message means.
fn judge(error: &lettre::transport::smtp::Error) -> Answer {
    let why = describe(error);
    match error.status().map(u16::from) {
        // It is of the server wherever it comes (RFC 5321, 4.2.3). Some servers say it of what they were offered.
        Some(421) => Answer::Left(why),
        // It greeted us, and then the connection ended: that may be because of this message, and others need not wait.
        None => Answer::Later(why),
        Some(_) if error.is_permanent() => Answer::Refused(why),
        Some(_) => Answer::Later(why),
    }
}

/// A connection to the server, encrypted and with a user as configured.
fn connect(mail: &config::Mail) -> Result<SmtpConnection, String> {
    let said = |error: lettre::transport::smtp::Error| describe(&error);
    let (host_name, port) = mail.server.get();
    let hello = ClientId::Domain(host());
    let parameters = match mail.tls {
        Tls::None => None,
        Tls::Starttls | Tls::Tls => Some(TlsParameters::new(host_name.to_owned()).map_err(said)?),
    };
    let wrapper = parameters.as_ref().filter(|_| mail.tls == Tls::Tls);
    let mut connection = SmtpConnection::connect((host_name, port), Some(PATIENCE), &hello, wrapper, None)
        .map_err(|error| format!("{host_name}:{port}: {}", describe(&error)))?;
    if let (Tls::Starttls, Some(parameters)) = (mail.tls, &parameters) {
        if !connection.can_starttls() {
            return Err(format!("{host_name}:{port} does not offer STARTTLS, which `tls` of [mail] asks for"));
        }
        connection.starttls(parameters, &hello).map_err(said)?;
    }
    if !mail.user.is_empty() {
        let password = password()?;
        connection.auth(DEFAULT_MECHANISMS, &Credentials::new(mail.user.clone(), password)).map_err(said)?;
    }
    Ok(connection)
}

fn password() -> Result<String, String> {
    let remedy = "write it to /etc/podsecd/smtp-password, for root alone to read";
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        format!("there is no password for `user` of [mail]: {remedy}; podsecd-mail.service passes it on")
    })?;
    let text = std::fs::read_to_string(Path::new(&directory).join(PASSWORD)).unwrap_or_default();
    let password = text.trim_end_matches(['\r', '\n']);
    if matches!(password, "" | NO_PASSWORD) {
        return Err(format!("there is no password for `user` of [mail]: {remedy}"));
    }
    Ok(password.to_owned())
}

/// By a program that takes sendmail's arguments (postfix's sendmail(1)).
fn by_sendmail(program: &Path, envelope: &Envelope, message: &[u8]) -> Answer {
    let mut command = Command::new(program);
    command.arg("-i");
    if let Some(from) = envelope.from() {
        command.args(["-f", from.as_ref()]);
    }
    // A user of this node is one without a domain: whoever runs sendmail knows where that is.
    let recipient = |address: &Address| match address.domain() {
        "localhost" => address.user().to_owned(),
        _ => address.to_string(),
    };
    command.arg("--").args(envelope.to().iter().map(recipient));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Answer::Away(format!("{}: {error}", program.display())),
    };
    // It gets lines as Unix programs write them. Whether it took all of them its exit code says.
    let lines = message.split(|byte| *byte == b'\r').collect::<Vec<_>>().concat();
    let (stderr, (said_to, said)) = (child.stderr.take(), mpsc::channel());
    thread::spawn(move || {
        let Some(mut stderr) = stderr else { return };
        let (mut words, mut left) = ([0; MAX_WORDS], MAX_WORDS);
        // However much it says: that must not keep it from its end.
        while let Ok(count @ 1..) = stderr.read(&mut words) {
            if left > 0 {
                let _ = said_to.send(words[..count].to_vec());
            }
            left = left.saturating_sub(count);
        }
    });
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(&lines));
    match child.wait() {
        Ok(status) if status.success() => Answer::Taken,
        Ok(status) => {
            // What it left behind may have its standard error, and need not end.
            let end = Instant::now() + LAST_WORDS;
            let mut words = Vec::new();
            while words.len() < MAX_WORDS
                && let Ok(more) = said.recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                words.extend(more);
            }
            let why = format!("{} ({status}): {}", program.display(), String::from_utf8_lossy(&words).trim());
            // sysexits(3): 64 to 78 but 75 say that another try changes nothing; those of a mail system that is not
            // set up are among them, so none of them is taken for a refusal of this message. Others need not wait for it.
            Answer::Later(why)
        }
        Err(error) => Answer::Away(format!("{}: {error}", program.display())),
    }
}

/// The error with its causes; a server's words are escaped where they are written.
fn describe(error: &lettre::transport::smtp::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
