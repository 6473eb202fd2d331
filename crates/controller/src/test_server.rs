//! A small API server, for tests of what is written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::Barrier;

/// An API server with what tests need: versions, merge patches, replacements, names that are taken once or made, finalizers, garbage collection when it is asked for. All is in namespace `ns`,
/// or in none.
#[derive(Clone)]
pub(crate) struct Server(pub(crate) Arc<Mutex<State>>);

pub(crate) struct State {
    /// By resource and name.
    pub(crate) objects: BTreeMap<(String, String), Value>,
    version: u64,
    /// What was written.
    log: Vec<String>,
    /// How many more writes it takes; then the controller is dead to it.
    takes: usize,
    /// Whether there is no room for another object.
    pub(crate) full: bool,
    /// A ResourceQuota that allows no more than so many sandboxes.
    pub(crate) most_sandboxes: usize,
    /// After so many more writes this object, by resource and name, is deleted by somebody else.
    pub(crate) vanishes: Option<(usize, String, String)>,
    /// Whether it has agent-sandbox's own definitions, and drops what these do not know.
    pub(crate) prunes: bool,
    /// Whether an object that is made again under its name is told from the one before, by its UID.
    pub(crate) tells_apart: bool,
    /// Where it meets somebody before it answers the next patch.
    pub(crate) meets: Option<Arc<Barrier>>,
}

impl Server {
    pub(crate) fn empty() -> Self {
        Self(Arc::new(Mutex::new(State {
            objects: BTreeMap::new(),
            version: 100,
            log: vec![],
            takes: usize::MAX,
            full: false,
            most_sandboxes: usize::MAX,
            vanishes: None,
            prunes: false,
            tells_apart: false,
            meets: None,
        })))
    }

    pub(crate) fn put<K: serde::Serialize>(&self, resource: &str, object: &K) {
        let mut object = serde_json::to_value(object).unwrap();
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        state.objects.insert((resource.to_owned(), name), object);
    }

    pub(crate) fn all<K: serde::de::DeserializeOwned>(&self, resource: &str) -> Vec<K> {
        let state = self.0.lock().unwrap();
        let of_kind = state.objects.iter().filter(|((kind, _), _)| kind == resource);
        of_kind
            .map(|(_, object)| serde_json::from_value(object.clone()).unwrap())
            .collect()
    }

    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().log)
    }

    pub(crate) fn takes(&self, writes: usize) {
        self.0.lock().unwrap().takes = writes;
    }

    /// One more thing is about to be done by the controller, here or elsewhere; whether it lives to do it.
    pub(crate) fn spend(&self) -> bool {
        let mut state = self.0.lock().unwrap();
        let lives = state.takes > 0;
        state.takes = state.takes.saturating_sub(1);
        lives
    }

    /// Whether the controller is dead to it.
    pub(crate) fn is_spent(&self) -> bool {
        self.0.lock().unwrap().takes == 0
    }

    /// Somebody deletes an object.
    pub(crate) fn remove(&self, resource: &str, name: &str) {
        let key = (resource.to_owned(), name.to_owned());
        self.0.lock().unwrap().objects.remove(&key);
    }

    /// Deletes whatever has owners and none that is there, as the garbage collector does.
    pub(crate) fn collect_garbage(&self) {
        let mut state = self.0.lock().unwrap();
        loop {
            let there: Vec<(String, Value)> = state
                .objects
                .iter()
                .map(|((resource, _), object)| (resource.clone(), object["metadata"]["uid"].clone()))
                .collect();
            let is_there = |owner: &Value| {
                let resource = format!("{}s", owner["kind"].as_str().unwrap().to_lowercase());
                there.contains(&(resource, owner["uid"].clone()))
            };
            let before = state.objects.len();
            state.objects.retain(|_, object| {
                let owners = object["metadata"]["ownerReferences"].as_array();
                owners.is_none_or(|owners| owners.is_empty() || owners.iter().any(is_there))
            });
            if state.objects.len() == before {
                return;
            }
        }
    }

    pub(crate) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let meets = server.meets(&parts.method);
                if let Some(meets) = meets {
                    meets.wait().await;
                }
                let body = body.collect_bytes().await?;
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let (code, answer) = server.answer(&parts.method, parts.uri.path(), &body)?;
                let answer = Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(
                    Response::builder().status(code).body(answer).unwrap(),
                )
            }
        });
        Client::new(service, "ns")
    }

    fn meets(&self, method: &Method) -> Option<Arc<Barrier>> {
        let mut state = self.0.lock().unwrap();
        state.meets.take_if(|_| *method == Method::PATCH)
    }

    fn answer(
        &self,
        method: &Method,
        path: &str,
        body: &Value,
    ) -> Result<(u16, Value), Box<dyn std::error::Error + Send + Sync>> {
        let mut state = self.0.lock().unwrap();
        let place = path
            .split("/namespaces/ns/")
            .nth(1)
            .or_else(|| path.split("/v1/").nth(1));
        let mut parts = place.unwrap().split('/');
        let resource = parts.next().unwrap().to_owned();
        let name = parts.next().map(str::to_owned);
        let is_status = parts.next().is_some();
        if state.takes == 0 {
            return Err("the controller is dead".into());
        }
        state.takes -= 1;
        match state.vanishes.take() {
            Some((0, resource, name)) => {
                state.objects.remove(&(resource, name));
            }
            Some((writes, resource, name)) => state.vanishes = Some((writes - 1, resource, name)),
            None => {}
        }
        let verb = method.as_str().to_lowercase();
        let what = if is_status {
            format!("{verb} {resource}/status")
        } else {
            format!("{verb} {resource}")
        };
        state.version += 1;
        let version = state.version.to_string();
        let named = || match (&body["metadata"]["name"], &body["metadata"]["generateName"]) {
            (Value::String(name), _) => name.clone(),
            (_, Value::String(prefix)) => format!("{prefix}{version}"),
            _ => String::new(),
        };
        let name = name.unwrap_or_else(named);
        state.log.push(format!("{what} {name}"));
        let key = (resource, name.clone());
        if *method == Method::POST {
            if state.full {
                return Ok(refused(403, "Forbidden"));
            }
            let there = state
                .objects
                .keys()
                .filter(|(kind, _)| kind == "sandboxes")
                .count();
            if key.0 == "sandboxes" && there >= state.most_sandboxes {
                let (code, mut answer) = refused(403, "Forbidden");
                answer["message"] = json!(format!(
                    "sandboxes.agents.x-k8s.io \"{name}\" is forbidden: exceeded quota: few, requested: \
                     count/sandboxes.agents.x-k8s.io=1, used: count/sandboxes.agents.x-k8s.io={there}, limited: \
                     count/sandboxes.agents.x-k8s.io={}",
                    state.most_sandboxes
                ));
                return Ok((code, answer));
            }
            if state.objects.contains_key(&key) {
                return Ok(refused(409, "AlreadyExists"));
            }
            let mut object = body.clone();
            object["metadata"]["resourceVersion"] = json!(version);
            object["metadata"]["uid"] = if state.tells_apart {
                json!(format!("{name}-{version}"))
            } else {
                json!(format!("{name}-uid"))
            };
            object["metadata"]["name"] = json!(name);
            state.objects.insert(key, object.clone());
            return Ok((201, object));
        }
        let prunes = state.prunes;
        let Some(object) = state.objects.get_mut(&key) else {
            return Ok(refused(404, "NotFound"));
        };
        let is_other = |key: &str| {
            let expected = &body["preconditions"][key];
            !expected.is_null() && *expected != object["metadata"][key]
        };
        if *method == Method::DELETE && (is_other("uid") || is_other("resourceVersion")) {
            return Ok(refused(409, "Conflict"));
        }
        match method.as_str() {
            "PATCH" => {
                let expected = &body["metadata"]["resourceVersion"];
                if !expected.is_null() && *expected != object["metadata"]["resourceVersion"] {
                    return Ok(refused(409, "Conflict"));
                }
                let mut patch = if is_status {
                    json!({ "status": body["status"] })
                } else {
                    body.clone()
                };
                if key.0 == "pods" {
                    merge_conditions(object, &mut patch);
                }
                merge(object, &patch);
                if let Some(status) = object["status"].as_object_mut().filter(|_| prunes) {
                    status.retain(|field, _| !["conditions", "demand"].contains(&field.as_str()));
                }
                object["metadata"]["resourceVersion"] = json!(version);
                let object = object.clone();
                if !object["metadata"]["deletionTimestamp"].is_null() && !is_held(&object) {
                    state.objects.remove(&key);
                }
                Ok((200, object))
            }
            "PUT" => {
                let expected = &body["metadata"]["resourceVersion"];
                if !expected.is_null() && *expected != object["metadata"]["resourceVersion"] {
                    return Ok(refused(409, "Conflict"));
                }
                *object = body.clone();
                object["metadata"]["resourceVersion"] = json!(version);
                Ok((200, object.clone()))
            }
            "DELETE" if is_held(object) => {
                object["metadata"]["deletionTimestamp"] = json!("2027-01-01T00:00:00Z");
                object["metadata"]["resourceVersion"] = json!(version);
                Ok((200, object.clone()))
            }
            "DELETE" => {
                state.objects.remove(&key);
                Ok((200, json!({"kind": "Status", "status": "Success"})))
            }
            _ => Ok((200, object.clone())),
        }
    }
}

fn refused(code: u16, reason: &str) -> (u16, Value) {
    let answer = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason,
    });
    (code, answer)
}

fn is_held(object: &Value) -> bool {
    object["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|finalizers| !finalizers.is_empty())
}

/// As the API server applies a strategic merge patch to the conditions of a pod: each is there once, by its type.
fn merge_conditions(object: &Value, patch: &mut Value) {
    let Some(new) = patch["status"]["conditions"].as_array_mut() else {
        return;
    };
    let old = object["status"]["conditions"].as_array();
    let kept = old
        .into_iter()
        .flatten()
        .filter(|old| new.iter().all(|new| new["type"] != old["type"]));
    let kept: Vec<Value> = kept.cloned().collect();
    new.extend(kept);
}

/// As the API server applies a JSON merge patch.
pub(crate) fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    let into = into.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            into.remove(key);
        } else {
            merge(into.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}
