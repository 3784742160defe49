"""What a workflow's parts say of each other: prompts of fields and inputs, outputs of schemas and the state."""

from __future__ import annotations

from pytest_agenttrace.workflow.models import MODEL, PROVIDER, LlmSettings, Node, OutputField
from pytest_agenttrace.workflow.models import WorkflowConfig as Config
from pytest_agenttrace.workflow.placeholders import ITEM, ITEM_NAMES, Placeholder, Template
from pytest_agenttrace.workflow.positions import Leaf, Problems, Table, Tree, part
from pytest_agenttrace.workflow.reading import did_you_mean
from pytest_agenttrace.workflow.references import Fields, Subject, UnknownName, maybe, member_type
from pytest_agenttrace.workflow.steps import check_steps
from pytest_agenttrace.workflow.types import Type, fits
from pytest_agenttrace.workflow.ways import check_ways, maps_of

__all__ = ["check"]


def check(config: Config, tree: Tree, problems: Problems) -> None:
    """Add what does not fit together. What could not be read is None, and judged no further."""
    fields = Fields({} if config.state is None else config.state.fields)
    subject = Subject(config, tree, problems, fields)
    for at, node in enumerate(config.nodes):
        if node is not None:
            _Node(subject, at, node).check()
    _distinct_ids(subject)
    check_ways(subject)
    # Only what fits together can be gone through.
    if not problems.found:
        check_steps(subject)


def _distinct_ids(subject: Subject) -> None:
    seen: dict[str, int] = {}
    for at, node in enumerate(subject.config.nodes):
        tree = part(subject.tree, "nodes", at, "id")
        name = None if maybe(node) is None else maybe(node.id)
        if name in seen:
            subject.problems.add(tree, f"a node in line {seen[name]} is called {name} too")
        if name is not None:
            seen.setdefault(name, tree.place.line)


class _Node:
    def __init__(self, subject: Subject, at: int, node: Node) -> None:
        self.subject = subject
        self.at = at
        self.node = node
        self.maps = maps_of(subject, node.id)

    def tree(self, *keys: str | int) -> Tree:
        return part(self.subject.tree, "nodes", self.at, *keys)

    def check(self) -> None:
        self.outputs()
        for name, template in self.node.inputs.items():
            if template is not None:
                self.input(name, template)
        if self.node.prompt is not None:
            for placeholder in self.node.prompt.placeholders:
                self.placeholder(placeholder, self.tree("prompt"), inputs=True)
        if self.node.llm is not None:
            self.llm(self.node.llm)

    # Prompts

    def input(self, name: str, template: Template) -> None:
        tree = self.tree("inputs", name)
        text = template.text.strip()
        if not template.placeholders and text.removeprefix("state.") in (self.subject.fields.fields or ()):
            self.subject.problems.add(tree, f'a field of the state is named in braces; did you mean "{{{text}}}"?')
        for placeholder in template.placeholders:
            self.placeholder(placeholder, tree, inputs=False)

    def placeholder(self, found: Placeholder, tree: Tree, *, inputs: bool) -> None:
        try:
            self.type_of(found, inputs=inputs)
        except UnknownName as error:
            place = tree.at(found.offset) if isinstance(tree, Leaf) else None
            self.subject.problems.add(tree, f"{found}: {error}", place)

    def type_of(self, found: Placeholder, *, inputs: bool) -> Type | None:
        path = found.path
        if inputs and path[0] in self.node.inputs:
            return self.input_type(path)
        of_state = path[0] == "state"
        path = path[1:] if of_state else path
        if not path:
            raise UnknownName("the state as a whole is no text: name a field, {state.x}")
        if path[0] in ITEM_NAMES:
            return self.item_type(path)
        if not of_state and inputs and path[0] not in self.subject.fields:
            names = [*self.node.inputs, *self.subject.fields.fields]
            near = did_you_mean(path[0], names, "{{{}}}")
            raise UnknownName(f"neither an input of the node nor a field of the state{near}")
        return self.subject.fields.type_of(path, "{{state.{}}}" if of_state else "{{{}}}")

    def input_type(self, path: tuple[str, ...]) -> Type | None:
        template = maybe(self.node.inputs[path[0]])
        if template is None:
            return None
        only = template.only
        try:
            whole = Type("str") if only is None else self.type_of(only, inputs=False)
        except UnknownName:
            # Told at the input.
            return None
        return member_type(whole, path, 1)

    def item_type(self, path: tuple[str, ...]) -> Type | None:
        if not self.maps:
            raise UnknownName("it is there only in a node that a parallel map runs")
        if path[0] != ITEM:
            return member_type(Type("int"), path, 1)
        # Each map's items must have what is named.
        fields = [self.subject.fields.fields.get(found.items_field) for found in self.maps]
        lists = [None if field is None else maybe(field.type) for field in fields]
        kinds = [member_type(None if found is None else found.item, path, 1) for found in lists]
        return kinds[0] if all(kind == kinds[0] for kind in kinds) else None

    # Outputs

    def outputs(self) -> None:
        fields, seen = self.subject.fields, set[str]()
        for number, name in enumerate(self.node.outputs):
            tree = self.tree("outputs", number)
            if name is not None and name not in fields:
                self.subject.problems.add(tree, fields.unknown(name))
            if name in seen:
                self.subject.problems.add(tree, f"{name!r} stands here twice")
            if name is not None:
                seen.add(name)
        schema = self.node.output_schema
        # An output that could not be read may be any of the schema's fields.
        if schema is None or schema.type is None or not self.node.outputs or None in self.node.outputs:
            return
        if schema.type.name == "object":
            self.object_output(schema.fields or ())
        elif len(self.node.outputs) != 1:
            text = (
                f"one {schema.type} for {len(self.node.outputs)} outputs: more than one needs type: object, with fields"
            )
            self.subject.problems.add(self.tree("output_schema"), text)
        else:
            self.fitting(self.node.outputs[0], schema.type, self.tree("output_schema", "type"))

    def object_output(self, given: tuple[OutputField, ...]) -> None:
        if None in given or not given:
            return
        tree, seen = self.tree("output_schema", "fields"), set[str]()
        for number, field in enumerate(given):
            where = self.tree("output_schema", "fields", number)
            if field.name in seen:
                self.subject.problems.add(part(where, "name"), f"{field.name!r} stands here twice")
            elif field.name is not None and field.name not in self.node.outputs:
                near = did_you_mean(field.name, self.node.outputs) or f": outputs has {', '.join(self.node.outputs)}"
                self.subject.problems.add(part(where, "name"), f"{field.name!r} is no output of the node{near}")
            elif field.name is not None and field.type is not None:
                self.fitting(field.name, field.type, part(where, "type"))
            if field.name is not None:
                seen.add(field.name)
        missing = [name for name in self.node.outputs if name not in seen]
        # One misspelled name is one problem, told above.
        if missing and all(field.name in self.node.outputs for field in given):
            self.subject.problems.add(tree, f"no field for the output {', '.join(missing)}")

    def fitting(self, name: str, given: Type, tree: Tree) -> None:
        """Whether an output can be written to its field of the state."""
        field = self.subject.fields.fields.get(name)
        wanted = None if field is None else field.type
        if wanted is None or fits(given, wanted) or given == wanted:
            return
        if wanted.item is not None and any(found.collect_field == name for found in self.maps):
            if not fits(given, wanted.item):
                text = f"{given} for an item of {name}, which is {wanted} in the state"
                self.subject.problems.add(tree, text)
            return
        more = " with other members" if str(given) == str(wanted) else ""
        self.subject.problems.add(tree, f"{given} for {name}, which is {wanted}{more} in the state")

    # Models

    def llm(self, own: LlmSettings) -> None:
        """Another provider has none of the models that the workflow names."""
        config = self.subject.config.config
        common = LlmSettings() if config is None or config.llm is None else config.llm
        tree = self.tree("llm")
        unread = isinstance(tree, Table) and "model" in tree.entries and own.model is None
        if own.provider in (None, common.provider or PROVIDER) or own.model is not None or unread:
            return
        text = f"provider {own.provider} without a model: {common.model or MODEL} is {common.provider or PROVIDER}'s"
        self.subject.problems.add(tree, text)
