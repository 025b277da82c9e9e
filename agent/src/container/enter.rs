//! A command beside a task that runs, or has run, in a container.
//!
//! While the container runs, the command runs in it, as its engine runs any second program in a container: with its rights and limits, and not
//! with ours. When it is over and reserved, nothing can be run in it any more. Then the command gets a container of its own, which sees what the
//! task saw: the files of the container as they were left (an image without a name is made of them), the same mounts, variables, working
//! directory and user. That container and that image go with the command, or with the reservation, whichever is over first.

use std::io;
use std::time::Duration;

use serde_json::{Value, json};

use super::ContainerRecord;
use super::engine::Engine;
use super::error::EngineError;
use super::relay::{Relay, is_terminal};
use super::spec::{ContainerSpec, body};
use crate::shim::Spec;

/// The label of what is made for a person who looks into a task that is over; its value is the name of the task's container.
const ENTERED: &str = "batch-agent.entered";

/// How often it is asked whether a command whose output has ended is over, and how it ended.
const LOOK: Duration = Duration::from_millis(50);

/// How often at most.
const LOOKS: u32 = 100;

/// What a shell says of a command that a signal has killed.
const KILLED: u8 = 137;

/// A command in, or beside, a container.
#[derive(Debug)]
pub struct Visit<'a> {
    /// The task's container.
    pub record: &'a ContainerRecord,
    /// What the shim was told.
    pub spec: &'a Spec,
    /// What the shim was told of the container.
    pub container: &'a ContainerSpec,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Variables on top of the task's own.
    pub variables: Vec<(String, String)>,
}

impl Visit<'_> {
    /// Runs the command with this process's standard streams, and answers with its exit status.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn run(&self) -> Result<u8, EngineError> {
        let state = self.record.engine.state(&self.record.name)?;
        if state.is_some_and(|state| state.running) { self.inside() } else { self.beside() }
    }

    fn environment(&self) -> Vec<String> {
        self.variables.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// In the running container.
    fn inside(&self) -> Result<u8, EngineError> {
        let (engine, name) = (&self.record.engine, &self.record.name);
        let terminal = is_terminal();
        let wanted = json!({
            "AttachStdin": true, "AttachStdout": true, "AttachStderr": true, "Tty": terminal,
            "Cmd": self.command, "Env": self.environment(), "WorkingDir": self.spec.workdir, "User": self.container.user,
        });
        let id = engine.made("run a command in the container", &format!("/containers/{name}/exec"), &wanted)?;
        let start = json!({ "Detach": false, "Tty": terminal });
        let stream = engine.talk("run a command in the container", &format!("/exec/{id}/start"), Some(&start))?;
        let resize = |(rows, columns)| engine.resize(&format!("/exec/{id}/resize"), rows, columns);
        let end = || {
            let pid = engine.look(&format!("/exec/{id}/json")).ok().and_then(|exec| exec["Pid"].as_i64());
            if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        };
        Relay { terminal, resize: &resize, end: &end }.run(stream).map_err(|error| engine.broken(error))?;
        for _ in 0..LOOKS {
            let exec = match engine.look(&format!("/exec/{id}/json")) {
                // The container is gone, and the command with it.
                Err(error) if error.is_missing() => return Ok(KILLED),
                other => other?,
            };
            if exec["Running"] == false {
                return Ok(status(exec["ExitCode"].as_i64()));
            }
            std::thread::sleep(LOOK);
        }
        Ok(KILLED)
    }

    /// In a container of its own.
    fn beside(&self) -> Result<u8, EngineError> {
        let engine = &self.record.engine;
        let mut made = Made { engine, image: None, container: None };
        let image = match engine.commit(&self.record.name) {
            Ok(image) => made.image.insert(image).clone(),
            Err(error) => {
                eprintln!(
                    "batch-agent: what the program has left among the image's files is not shown, only its mounts are: {error}"
                );
                self.container.image.clone()
            }
        };
        let terminal = is_terminal();
        let container = ContainerSpec { image, ..self.container.clone() };
        let mut environment = self.spec.environment.clone();
        environment.extend(self.variables.iter().cloned());
        let mut wanted = body(&container, &self.command, &environment, &self.spec.workdir);
        for (name, value) in [
            ("Tty", json!(terminal)),
            ("OpenStdin", json!(true)),
            ("StdinOnce", json!(true)),
            ("AttachStdin", json!(true)),
        ] {
            wanted[name] = value;
        }
        wanted["Labels"][ENTERED] = json!(self.record.name);
        wanted["HostConfig"]["LogConfig"] = json!({ "Type": "none", "Config": {} });
        let name = format!("{}-enter-{}", self.record.name, std::process::id());
        let id = made.container.insert(engine.create(&name, &wanted)?).clone();
        let path = format!("/containers/{id}/attach?stream=1&stdin=1&stdout=1&stderr=1");
        let stream = engine.talk("talk to the container", &path, None)?;
        engine.started(engine.start(&id)?)?;
        let resize = |(rows, columns)| engine.resize(&format!("/containers/{id}/resize"), rows, columns);
        let end = || drop(engine.kill(&id, "SIGKILL"));
        Relay { terminal, resize: &resize, end: &end }.run(stream).map_err(|error| engine.broken(error))?;
        for _ in 0..LOOKS {
            match engine.state(&id)? {
                Some(state) if state.is_over() => return Ok(status(Some(state.exit_code.into()))),
                Some(_) => std::thread::sleep(LOOK),
                None => return Ok(KILLED),
            }
        }
        Ok(KILLED)
    }
}

fn status(code: Option<i64>) -> u8 {
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(KILLED)
}

/// What is made for one command, and goes with it.
struct Made<'a> {
    engine: &'a Engine,
    image: Option<String>,
    container: Option<String>,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        let container = self.container.as_ref().map(|container| self.engine.remove(container));
        let image = self.image.as_ref().map(|image| self.engine.remove_image(image));
        for error in [container, image].into_iter().flatten().filter_map(Result::err) {
            tracing::debug!(%error, "what was made for a command stays until the task is released");
        }
    }
}

impl ContainerRecord {
    /// Removes what was made for commands beside the container, when that is reserved no longer.
    ///
    /// # Errors
    /// When some of it stays.
    pub fn remove_visits(&self) -> Result<(), EngineError> {
        let filter = json!({ "label": [format!("{ENTERED}={}", self.name)] });
        for container in self.engine.listed("/containers/json?all=1", &filter)? {
            self.engine.remove(&container)?;
        }
        for image in self.engine.listed("/images/json?all=1", &filter)? {
            self.engine.remove_image(&image)?;
        }
        Ok(())
    }
}

impl Engine {
    /// Makes an image without a name of what a container has left, and answers with its id.
    fn commit(&self, container: &str) -> Result<String, EngineError> {
        let path = format!("/commit?container={container}&changes=LABEL%20{ENTERED}%3D{container}");
        self.made("keep the container's files", &path, &json!({}))
    }

    /// The ids of what is listed.
    fn listed(&self, path: &str, filter: &Value) -> Result<Vec<String>, EngineError> {
        let list = self.look(&format!("{path}&filters={}", super::engine::encoded(&filter.to_string())))?;
        Ok(list.as_array().into_iter().flatten().filter_map(|one| one["Id"].as_str().map(str::to_owned)).collect())
    }

    /// Tells it the size of the terminal. It is a courtesy.
    fn resize(&self, path: &str, rows: u16, columns: u16) {
        let _ = self.tell("set the terminal's size", &format!("{path}?h={rows}&w={columns}"));
    }

    fn broken(&self, source: io::Error) -> EngineError {
        EngineError::Unreachable { socket: self.socket.clone(), source }
    }
}
