//! Renders conversations with a model's chat template (Jinja).

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use serde_json::Value as Json;

use crate::storage::regular_file;
use crate::{Error, Result};

/// What a template may spend on one conversation, in minijinja's measure: an instruction each, or 64 bytes of data. A
/// published template spends some hundreds on a message; a hostile one would loop for ever, or fill the memory.
const FUEL: u64 = 4_000_000;

/// A chat template and the special tokens that it uses.
pub(super) struct Chat {
    template: String,
    config: Json,
}

impl Chat {
    /// The template of the tokenizer in `folder`, from `chat_template.jinja` or `tokenizer_config.json`.
    pub fn open(folder: &Path) -> Result<Chat> {
        let missing = || {
            Error::input("the text has messages, but the model has no chat template")
                .path(folder)
                .hint("give the folder of a model that has one (--tokenizer DIR), or plain text")
        };
        let path = folder.join("tokenizer_config.json");
        let config: Json = match regular_file::read_if_any(&path)? {
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::input("the file is not valid JSON").path(&path).because(e))?,
            None => Json::Null,
        };
        let own = folder.join("chat_template.jinja");
        let own = match regular_file::read_text(&own) {
            Ok(text) => Some(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(regular_file::cannot_read(&own, e)),
        };
        let template = own.or_else(|| named(config.get("chat_template")?)).ok_or_else(missing)?;
        // Markers for training that print nothing and that only transformers' own Jinja knows.
        let template =
            ["{% generation %}", "{% endgeneration %}", "{%- generation %}", "{%- endgeneration %}"]
                .iter()
                .fold(template, |template, mark| template.replace(mark, ""));
        Ok(Chat { template, config })
    }

    /// A conversation as text.
    pub fn render(&self, messages: Json) -> Result<String> {
        let token = |key: &str| {
            let token = self.config.get(key)?;
            token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
        };
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        // The same settings as in transformers.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment
            .set_syntax(syntax.map_err(|e| Error::unexpected("cannot set up the chat template").because(e))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |what: String| -> std::result::Result<String, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, what))
            },
        );
        // The real date would change the text every day.
        environment.add_function("strftime_now", |_: String| "2025-01-01".to_owned());
        let messages: Value = serde_json::from_value(messages)
            .map_err(|e| Error::input("the messages cannot be passed to the chat template").because(e))?;
        let context = context! {
            messages => messages,
            add_generation_prompt => false,
            bos_token => token("bos_token").unwrap_or_default(),
            eos_token => token("eos_token").unwrap_or_default(),
            pad_token => token("pad_token").unwrap_or_default(),
            unk_token => token("unk_token").unwrap_or_default(),
        };
        environment.render_str(&self.template, context).map_err(|e| match e.kind() {
            ErrorKind::OutOfFuel => {
                Error::input("the chat template takes too much time or memory for a conversation")
                    .because(e)
                    .hint("look at the template: it may do harm; or give shorter conversations")
            }
            _ => Error::input("the chat template refuses a conversation")
                .because(e)
                .hint("its roles may have to take turns: user, assistant, user, ..."),
        })
    }
}

/// The template, or the default one of several.
fn named(templates: &Json) -> Option<String> {
    if let Some(template) = templates.as_str() {
        return Some(template.to_owned());
    }
    let default = templates
        .as_array()?
        .iter()
        .find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"));
    default?.get("template")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_in_the_manner_of_the_published_ones() {
        let template =
            "{%- if messages[0]['role'] == 'system' %}\n{{- messages[0].content.strip() }}\n{%- endif %}
{%- for message in messages %}
    {%- if loop.first and message.role == 'system' %}{% continue %}{% endif %}
    {{- '<|' + message['role'] + '|>' + message['content'] | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{ raise_exception('not here') }}{% endif %}";
        let chat = Chat {
            template: template.to_owned(),
            config: serde_json::json!({"eos_token": {"content": "</s>"}}),
        };
        let messages = serde_json::json!([
            {"role": "system", "content": " Be brief. "},
            {"role": "user", "content": " Hi"},
            {"role": "assistant", "content": "Hello."},
        ]);
        assert_eq!(chat.render(messages).unwrap(), "Be brief.<|user|>Hi</s><|assistant|>Hello.</s>");
        let greedy = [
            "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
            "{{ 'x' * 10000000000 }}",
            "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
            "{{ 'a'.join(['b'] * 4000000000) }}",
        ];
        for template in greedy {
            let greedy = Chat { template: template.into(), config: serde_json::Value::Null };
            let error = greedy.render(serde_json::json!([])).unwrap_err();
            assert!(error.to_string().contains("the chat template"), "{template}: {error}");
        }
        let refusing = Chat { template: "{{ raise_exception('roles must alternate') }}".into(), ..chat };
        let error = refusing.render(serde_json::json!([])).unwrap_err();
        assert!(format!("{error}").contains("refuses a conversation"), "{error}");
    }
}
