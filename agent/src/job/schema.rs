//! The JSON Schema of our own job description, for editors and for checks before a job is sent.

use super::yaml::JobDocument;

/// The schema (draft 2020-12) as indented JSON with a line end.
pub fn json_schema() -> String {
    let schema = schemars::schema_for!(JobDocument);
    format!("{:#}\n", schema.as_value())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_describes_every_key_and_forbids_others() {
        let schema: serde_json::Value = serde_json::from_str(&json_schema()).unwrap();
        assert_eq!(schema["title"], "batch-agent job");
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["required"], serde_json::json!(["version", "tasks"]));
        let task = &schema["$defs"]["TaskDocument"];
        assert_eq!(task["additionalProperties"], false);
        let keys: Vec<_> = task["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        let known = [
            "command",
            "package",
            "environment",
            "container",
            "inputs",
            "input-cache",
            "outputs",
            "logs",
            "stdout",
            "stderr",
            "instances",
            "retries",
            "no-retry-exit-codes",
            "retry-timeouts",
            "reserve-on-fail",
            "timeout",
            "limits",
            "user",
            "after",
        ];
        assert_eq!(keys, known);
        for (key, property) in task["properties"].as_object().unwrap() {
            assert!(property["description"].as_str().is_some_and(|text| !text.is_empty()), "{key}: {property}");
        }
    }
}
