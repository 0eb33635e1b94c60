//! How large a model becomes with the bodies of its own functions in the place of their calls.
//!
//! A function that calls another one twice, which calls a third one twice, and so on, is a file of a few lines and a graph of
//! any size. So the size is worked out before anybody writes it: that of a call is that of the body, of the calls in it, and of
//! each attribute as often as the body refers to it.

use std::collections::HashMap;

use prost::Message;

use crate::error::{Error, Result};
use crate::graph::subgraphs;
use crate::model::{Model, is_default_domain};
use crate::onnx::{FunctionProto, GraphProto, NodeProto};

/// Calls within calls. What inlines functions may be recursive, as this is.
const DEEPEST: usize = 200;

/// Bytes of a model with its functions inlined, about: names become longer by what keeps them apart.
///
/// # Errors
/// [`Error::Model`], naming a function, when functions call each other in a circle, or too many levels deep.
pub fn inlined_len(model: &Model) -> Result<usize> {
    let mut sizes = Sizes { functions: HashMap::new(), known: HashMap::new(), open: Vec::new() };
    for function in &model.proto().functions {
        sizes.functions.insert(Key::of_function(function), function);
    }
    let mut size = Size { bytes: model.proto().encoded_len(), uses: HashMap::new() };
    sizes.add_graph(model.graph(), &mut size)?;
    Ok(size.bytes)
}

/// Domain, name and overload.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key<'m>(&'m str, &'m str, &'m str);

impl<'m> Key<'m> {
    fn new(domain: &'m str, name: &'m str, overload: &'m str) -> Self {
        Self(if is_default_domain(domain) { "" } else { domain }, name, overload)
    }

    fn of_function(function: &'m FunctionProto) -> Self {
        Self::new(function.domain(), function.name(), function.overload())
    }

    fn of_call(node: &'m NodeProto) -> Self {
        Self::new(node.domain(), node.op_type(), node.overload())
    }
}

/// Of a body with everything inlined, without the values of the function's attributes.
#[derive(Default)]
struct Size<'m> {
    bytes: usize,
    /// How often each of the function's attributes is written.
    uses: HashMap<&'m str, usize>,
}

struct Sizes<'m> {
    functions: HashMap<Key<'m>, &'m FunctionProto>,
    known: HashMap<Key<'m>, Size<'m>>,
    /// Functions that are being measured, each called by the one before.
    open: Vec<Key<'m>>,
}

impl<'m> Sizes<'m> {
    fn add_graph(&mut self, graph: &'m GraphProto, size: &mut Size<'m>) -> Result<()> {
        graph.node.iter().try_for_each(|node| self.add_node(node, size))
    }

    /// Adds what takes the place of a node, besides the node.
    fn add_node(&mut self, node: &'m NodeProto, size: &mut Size<'m>) -> Result<()> {
        for body in node.attribute.iter().flat_map(subgraphs) {
            self.add_graph(body, size)?;
        }
        let key = Key::of_call(node);
        let called = self.functions.contains_key(&key);
        if called {
            self.measure(key)?;
        }
        let function = self.known.get(&key);
        size.bytes = size.bytes.saturating_add(function.map_or(0, |function| function.bytes));
        for attribute in &node.attribute {
            let times =
                function.map_or(1, |function| function.uses.get(attribute.name()).copied().unwrap_or(0));
            match attribute.ref_attr_name() {
                "" if called => {
                    size.bytes = size.bytes.saturating_add(times.saturating_mul(attribute.encoded_len()));
                }
                "" => {}
                outer => {
                    let uses = size.uses.entry(outer).or_default();
                    *uses = uses.saturating_add(times);
                }
            }
        }
        Ok(())
    }

    /// Makes the size of a function known.
    fn measure(&mut self, key: Key<'m>) -> Result<()> {
        if self.known.contains_key(&key) {
            return Ok(());
        }
        let fail = |what: &str| Err(Error::Model(format!("the model's function '{}' {what}", key.1)));
        if self.open.contains(&key) {
            return fail("calls itself, directly or by others");
        }
        if self.open.len() == DEEPEST {
            return fail(&format!("is called by others in more than {DEEPEST} levels"));
        }
        self.open.push(key);
        let function = self.functions[&key];
        let mut size =
            Size { bytes: function.node.iter().map(Message::encoded_len).sum(), ..Size::default() };
        function.node.iter().try_for_each(|node| self.add_node(node, &mut size))?;
        self.open.pop();
        self.known.insert(key, size);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{AttributeProto, ModelProto};

    fn call(name: &str, attributes: Vec<AttributeProto>) -> NodeProto {
        let domain = Some("own".to_owned());
        NodeProto { op_type: Some(name.to_owned()), domain, attribute: attributes, ..Default::default() }
    }

    fn function(name: &str, node: Vec<NodeProto>) -> FunctionProto {
        FunctionProto {
            name: Some(name.to_owned()),
            domain: Some("own".to_owned()),
            node,
            ..Default::default()
        }
    }

    fn size(functions: Vec<FunctionProto>, nodes: Vec<NodeProto>) -> Result<usize> {
        let graph = Some(GraphProto { node: nodes, ..Default::default() });
        let model = Model::from_proto(ModelProto { graph, functions, ..Default::default() })?;
        Ok(inlined_len(&model)? - model.proto().encoded_len())
    }

    fn doubling(levels: usize) -> Vec<FunctionProto> {
        let leaf = function("f0", vec![call("Relu", vec![])]);
        let each = |k: usize| {
            let inner = call(&format!("f{}", k - 1), vec![]);
            function(&format!("f{k}"), vec![inner.clone(), inner])
        };
        std::iter::once(leaf).chain((1..levels).map(each)).collect()
    }

    #[test]
    fn calls_of_calls_are_counted() {
        let leaf = call("Relu", vec![]).encoded_len();
        assert_eq!(size(doubling(1), vec![call("f0", vec![])]).unwrap(), leaf);
        assert_eq!(size(doubling(1), vec![call("other", vec![])]).unwrap(), 0);
        let middle = call("f0", vec![]).encoded_len();
        assert_eq!(size(doubling(2), vec![call("f1", vec![])]).unwrap(), 2 * (middle + leaf));
        assert!(size(doubling(40), vec![call("f39", vec![])]).unwrap() > 1 << 39);
        assert!(size(doubling(150), vec![call("f149", vec![])]).unwrap() > usize::MAX / 2);
    }

    #[test]
    fn attributes_are_counted_where_they_are_used() {
        let reference = |name: &str, outer: &str| AttributeProto {
            name: Some(name.to_owned()),
            ref_attr_name: Some(outer.to_owned()),
            ..Default::default()
        };
        let value = AttributeProto {
            name: Some("v".to_owned()),
            s: Some(vec![b'x'; 1000].into()),
            ..Default::default()
        };
        let inner = function("inner", vec![call("Constant", vec![reference("value", "w")]); 3]);
        let outer = function("outer", vec![call("inner", vec![reference("w", "v")]); 5]);
        let with =
            size(vec![inner.clone(), outer.clone()], vec![call("outer", vec![value.clone()])]).unwrap();
        let without = size(vec![inner, outer], vec![call("outer", vec![])]).unwrap();
        assert_eq!(with - without, 15 * value.encoded_len());
    }

    #[test]
    fn circles_and_towers_are_refused() {
        let circle = vec![function("a", vec![call("b", vec![])]), function("b", vec![call("a", vec![])])];
        let error = size(circle, vec![call("a", vec![])]).unwrap_err().to_string();
        assert!(error.contains("'a' calls itself"), "{error}");
        let error = size(doubling(1000), vec![call("f999", vec![])]).unwrap_err().to_string();
        assert!(error.contains("levels"), "{error}");
    }
}
