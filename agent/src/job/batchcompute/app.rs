//! App jobs: a template, and the values that a job puts into it.
//!
//! An App's description says which program runs, with `${name}` where its parameters go; the job gives the parameters' values. A
//! parameter with a `LocalPath` is a place in object storage that is mapped there, and `${name}` is then the local path. Together they
//! are a job of one task, [`TASK`]. Every parameter is a variable of the same name as well.
//!
//! Values come from somebody else than the command line. So they are put in *after* it was split into words: one with spaces or
//! quotes stays part of its word. What cannot be helped is an App that has its words read again by a shell, as the guide's own
//! example does (`bash -c 'cp ${from} ${to}'`). A value which that shell would not take as it is gets a warning.

mod template;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use self::template::Template;
use super::object::{Object, expect, type_of};
use super::{DEFAULT_TIMEOUT, keys, read_command};
use crate::job::document;
use crate::job::draft::{DraftCommand, DraftInput, DraftOutput, DraftTask};
use crate::job::finding::{At, Findings, Place, Problems, nearest, quoted};

/// What the one task of an App job is called.
const TASK: &str = "app";

/// What stands before places in the App's description.
pub(crate) const PLACE: &str = "AppDescription";

fn root() -> Place {
    Place::root().key(PLACE)
}

/// Parses an App's description, JSON or YAML.
pub(in crate::job) fn parse(bytes: &[u8], findings: &mut Findings) -> Result<Value, Problems> {
    let broken = |cause: String| Problems::single(&root(), cause, "correct it there");
    let text = document::text(bytes).map_err(|_| broken("is not UTF-8 text of at most 16 MiB".to_owned()))?;
    let mut own = Findings::default();
    let parsed = if text.trim_start().starts_with('{') {
        document::json(text, &mut own).map_err(|error| broken(format!("is not JSON: {error}")))?
    } else {
        document::yaml(text, &mut own).map_err(|error| broken(format!("is not YAML: {error}")))?
    };
    match own.finish() {
        Ok(warnings) => findings.adopt(&root(), Vec::new(), warnings),
        Err(problems) => findings.adopt(&root(), problems.findings().to_vec(), problems.warnings().to_vec()),
    }
    Ok(parsed)
}

/// Says that an App's description was given for nothing.
pub(in crate::job) fn unused(description: Option<&Value>, findings: &mut Findings) {
    if description.is_some() {
        findings.warn(&root(), "is not used: the job is not made from an App", "leave it out");
    }
}

/// The task that an App job comes to.
pub(super) fn read(job: &Object<'_>, description: Option<&Value>, findings: &mut Findings) -> Option<DraftTask> {
    let place = job.place.key("App");
    let Some(wanted) = job.object("App", keys::APP_JOB, findings) else {
        if !job.has("App") {
            findings.error_with(
                &place,
                "is missing",
                "an App job names its App and gives the parameters' values there",
            );
        }
        return None;
    };
    let Some(description) = description else {
        findings.error_with(
            &place,
            "the App's description is not there, and the job says only what goes into it",
            "give it with --app FILE (in a node's settings: task.app, task.app_file or task.app_object)",
        );
        return None;
    };
    let Some(map) = description.as_object() else {
        findings.error(&root(), format!("expected an object with the App's keys, got {}", type_of(description)));
        return None;
    };
    let app = Object::open(root(), map, keys::APP, findings);
    app.object("VM", keys::VM, findings);
    is_the_one_meant(&app, &wanted, findings);

    let mut draft = DraftTask { place, name: TASK.to_owned(), ..DraftTask::default() };
    // Command line, container and variables stand in it as in a task's `Command`.
    read_command(&app, &mut draft, findings);
    let mut parameters = read_parameters(&app, &wanted, Side::Input, &mut draft, findings);
    parameters.extend(read_parameters(&app, &wanted, Side::Output, &mut draft, findings));
    is_each_name_given_once(&parameters, &draft, findings);

    match draft.command.take() {
        Some(At { place, value: DraftCommand::Line(line) }) => {
            let template = Template { place: &place, app: &app, parameters: &parameters, draft: &draft };
            let command = template.fill(line, findings);
            draft.command = Some(At::new(place, command));
        }
        Some(words) => draft.command = Some(words),
        None if app.raw("CommandLine").is_none_or(|line| line.is_null() || line.is_string()) => {
            let remedy = "an App needs a program to run, such as \"python main.py ${input}\"";
            findings.error_with(&app.place.key("CommandLine"), "is missing", remedy);
        }
        None => {}
    }
    // Also those without a place to go to are variables.
    for Parameter { name, value, .. } in parameters {
        draft.environment.push(At::new(value.place, (name, value.value)));
    }
    if let Some(logging) = wanted.object("Logging", keys::LOGGING, findings) {
        (draft.stdout, draft.stderr) = (logging.text("StdoutPath"), logging.text("StderrPath"));
    }
    read_config(&app, &wanted, &mut draft, findings);
    Some(draft)
}

/// The job says which App it means, and the description which one it is.
fn is_the_one_meant(app: &Object<'_>, job: &Object<'_>, findings: &mut Findings) {
    if let (Some(wanted), Some(name)) = (job.text("AppName"), app.text("Name"))
        && wanted.value != name.value
    {
        findings.error_with(
            &wanted.place,
            format!(
                "the job wants the App {}, and the description is of {}",
                quoted(&wanted.value),
                quoted(&name.value)
            ),
            "give the description of the App it wants",
        );
    }
}

/// A parameter with its value.
struct Parameter {
    name: String,
    /// What `${name}` is: the local path it is mapped to, else its value. The place is the value's.
    value: At<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Input,
    Output,
}

impl Side {
    fn word(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
        }
    }

    /// Where the App declares them.
    fn declared(self) -> &'static str {
        match self {
            Self::Input => "InputParameters",
            Self::Output => "OutputParameters",
        }
    }

    /// Where the job gives their values.
    fn given(self) -> &'static str {
        match self {
            Self::Input => "Inputs",
            Self::Output => "Outputs",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Input => Self::Output,
            Self::Output => Self::Input,
        }
    }
}

/// Reads the parameters of one side with their values, and maps those that have a local path.
fn read_parameters(
    app: &Object<'_>,
    job: &Object<'_>,
    side: Side,
    draft: &mut DraftTask,
    findings: &mut Findings,
) -> Vec<Parameter> {
    let declared = app.mapping(side.declared());
    let given = job.mapping(side.given());
    let names = |side: Side| {
        let parameters = app.raw(side.declared()).and_then(Value::as_object);
        parameters.into_iter().flat_map(|map| map.keys()).map(String::as_str)
    };
    for (name, value) in given.iter().flat_map(Object::entries) {
        if !names(side).any(|known| known == name) {
            let cause = format!("the App has no {} parameter {}", side.word(), quoted(name));
            let remedy = if names(side.other()).any(|known| known == name) {
                format!("it is an {} parameter; give its value in {}", side.other().word(), side.other().given())
            } else if let Some(near) = nearest(name, names(side)) {
                format!("did you mean {near}?")
            } else {
                "remove it, or add it to the App's description".to_owned()
            };
            findings.error_with(&value.place, cause, remedy);
        }
    }
    // What is no object was reported; its values are not missing on top of that.
    let is_readable = job.raw(side.given()).is_none_or(|given| given.is_null() || given.is_object());
    let mut parameters = Vec::new();
    for (name, parameter) in declared.iter().flat_map(Object::entries) {
        let Some(map) = parameter.value.as_object() else {
            findings.error(&parameter.place, format!("expected an object, got {}", type_of(parameter.value)));
            continue;
        };
        let declared = Object::open(parameter.place, map, keys::PARAMETER, findings);
        let Some(kind) = parameter_kind(&declared, findings) else { continue };
        let local = declared.text("LocalPath");
        if name.is_empty() || name.contains(['$', '{', '}', '=', '\0']) {
            let remedy = "use letters, digits and '_'";
            findings.error_with(&declared.place, format!("{} cannot be a parameter's name", quoted(name)), remedy);
        } else if let (ParameterKind::Number, Some(local)) = (kind, &local) {
            findings.error_with(
                &local.place,
                "a number is no place in object storage",
                "remove it, or make the type String",
            );
        } else {
            let place = job.place.key(side.given()).key(name);
            let value = given.as_ref().and_then(|given| given.raw(name));
            let written = value.filter(|value| !value.is_null()).map(|value| At::new(place.clone(), value));
            let default = declared.raw("Default").filter(|value| !value.is_null());
            let default = default.map(|value| At::new(declared.place.key("Default"), value));
            // An empty text is a value. It is no number and no place, and clients write it for what is not set.
            let means_something = |value: &At<&Value>| {
                value.value.as_str() != Some("") || (kind == ParameterKind::Text && local.is_none())
            };
            match written.filter(means_something).or(default.filter(means_something)) {
                Some(value) => {
                    let Some(value) = kind.read(value, findings) else { continue };
                    parameters.push(map_parameter(name, value, local, side, draft));
                }
                None if is_readable => findings.error_with(
                    &place,
                    "is missing, and the App has no default for it",
                    format!("give the {} parameter a value", side.word()),
                ),
                None => {}
            }
        }
    }
    parameters
}

/// What a parameter's value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ParameterKind {
    Text,
    Number,
}

fn parameter_kind(declared: &Object<'_>, findings: &mut Findings) -> Option<ParameterKind> {
    let Some(written) = declared.text("Type") else { return Some(ParameterKind::Text) };
    match written.value.as_str() {
        "String" => Some(ParameterKind::Text),
        "Number" => Some(ParameterKind::Number),
        other => {
            let remedy = nearest(other, ["String", "Number"]).map_or("write one of them", |near| {
                if near == "String" { "did you mean String?" } else { "did you mean Number?" }
            });
            findings.error_with(&written.place, format!("expected String or Number, got {}", quoted(other)), remedy);
            None
        }
    }
}

impl ParameterKind {
    /// The value as text, if it is of the kind.
    fn read(self, value: At<&Value>, findings: &mut Findings) -> Option<At<String>> {
        let text = match (self, value.value) {
            (Self::Text, Value::String(text)) => Some(text.clone()),
            (Self::Number, Value::Number(number)) => Some(number.to_string()),
            // The Java SDK has texts for all values.
            (Self::Number, Value::String(text)) if is_number(text) => Some(text.clone()),
            _ => None,
        };
        if text.is_none() {
            let wanted = if self == Self::Text { "text" } else { "a number" };
            let got = value.value.as_str().map_or_else(|| type_of(value.value).to_owned(), quoted);
            let remedy = if self == Self::Text { "put the value in quotes" } else { "write digits" };
            findings.error_with(&value.place, format!("expected {wanted}, got {got}"), remedy);
        }
        text.map(|text| At::new(value.place, text))
    }
}

/// Whether the text is a number as JSON has them.
fn is_number(text: &str) -> bool {
    !text.starts_with(char::is_whitespace)
        && !text.ends_with(char::is_whitespace)
        && serde_json::from_str::<serde_json::Number>(text).is_ok()
}

fn map_parameter(
    name: &str,
    value: At<String>,
    local: Option<At<String>>,
    side: Side,
    draft: &mut DraftTask,
) -> Parameter {
    let name = name.to_owned();
    let Some(local) = local else { return Parameter { name, value } };
    let shown = At::new(local.place.clone(), local.value.clone());
    match side {
        Side::Input => {
            draft.inputs.push(DraftInput { source: value, target: local, writable: Some(true), locale: None });
        }
        Side::Output => draft.outputs.push(DraftOutput { source: local, target: value, locale: None }),
    }
    Parameter { name, value: shown }
}

/// `${name}` means one thing, and so does the variable.
fn is_each_name_given_once(parameters: &[Parameter], draft: &DraftTask, findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    for Parameter { name, value } in parameters {
        if !seen.insert(name.as_str()) {
            let remedy = "give one of them another name";
            findings.error_with(&value.place, format!("{} is an input parameter, too", quoted(name)), remedy);
        }
    }
    for variable in draft.environment.iter().filter(|variable| seen.contains(variable.value.0.as_str())) {
        findings.warn(&variable.place, "is a parameter as well, whose value is used", "remove it, or use another name");
    }
}

/// How many instances, how often, how long: the job's word, where the App allows it, else the App's.
fn read_config(app: &Object<'_>, job: &Object<'_>, draft: &mut DraftTask, findings: &mut Findings) {
    let wanted = job.object("Config", keys::APP_CONFIG, findings);
    let mut settings = BTreeMap::new();
    for (name, setting) in app.mapping("Config").iter().flat_map(Object::entries) {
        let Some((_, kind)) = keys::APP_CONFIG.iter().find(|(known, _)| *known == name) else {
            let near = nearest(name, keys::APP_CONFIG.iter().map(|(known, _)| *known));
            let remedy = near.map_or_else(|| "it has no effect".to_owned(), |near| format!("did you mean {near}?"));
            findings.warn(&setting.place, "is not a setting known here and is ignored", remedy);
            continue;
        };
        let Some(map) = setting.value.as_object() else {
            if !setting.value.is_null() {
                findings.error(&setting.place, format!("expected an object, got {}", type_of(setting.value)));
            }
            continue;
        };
        let setting = Object::open(setting.place, map, keys::APP_SETTING, findings);
        let default = setting.raw("Default").filter(|value| value.as_str() != Some(""));
        let changed = wanted.as_ref().and_then(|wanted| wanted.raw(name)).filter(|value| !value.is_null());
        if let Some(value) = changed
            && setting.flag("Overwritable") == Some(false)
            && Some(value) != default
            && value.as_str() != Some("")
        {
            findings.error_with(
                &job.place.key("Config").key(name),
                "the App does not let a job change it (Overwritable is false)",
                "remove it",
            );
        }
        if let Some(default) = default {
            expect(&setting.place.key("Default"), default, *kind, findings);
            settings.insert(name, setting);
        }
    }
    let own = |name: &str| wanted.as_ref().filter(|wanted| wanted.has(name));
    let whole = |name: &str| match own(name) {
        Some(wanted) => wanted.whole(name),
        None => settings.get(name).and_then(|setting| setting.whole("Default")),
    };
    draft.instances = whole("InstanceCount");
    draft.retries = whole("MaxRetryCount");
    draft.timeout = whole("Timeout");
    if draft.timeout.is_none() && own("Timeout").is_none() && !settings.contains_key("Timeout") {
        draft.timeout = Some(At::new(job.place.key("Config").key("Timeout"), DEFAULT_TIMEOUT));
    }
    draft.reserve_on_fail = match own("ReserveOnFail") {
        Some(wanted) => wanted.flag("ReserveOnFail"),
        None => settings.get("ReserveOnFail").and_then(|setting| setting.flag("Default")),
    }
    .unwrap_or(false);
}
