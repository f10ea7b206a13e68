"""pipeline/declarations.py: where pieces of a repository are cut."""
import pytest

from pipeline.declarations import declaration_lines

KOTLIN = '''package a

// one
// two
@Foo
class A(val x: Int) { // trailing
    /** doc */
    fun f() {
        val inner = 1
        fun g() {}
    }

    // apart

    val p = 3
    companion object {
        const val Q = 1
    }
    constructor(y: String) : this(1)
    enum class E { X, Y }
}
fun top() = 1; fun second() = 2
typealias B = A
'''
JAVA = '''import x;
/** doc */
@Foo
public class A {
  int x = 3; // trailing
  int y;
  /* c */ void f() { int z = 1; }
  static class B { B() {} }
}
'''


@pytest.mark.parametrize(("text", "path", "expected"), [
    (KOTLIN, "a.kt", ["// one", "/** doc */", "val p = 3", "companion object {", "const val Q = 1",
                      "constructor(y: String) : this(1)", "enum class E { X, Y }",
                      "fun top() = 1; fun second() = 2", "typealias B = A"]),
    (JAVA, "src/A.java", ["import x;", "/** doc */", "int x = 3; // trailing", "int y;",
                          "/* c */ void f() { int z = 1; }", "static class B { B() {} }"]),
])
def test_where_declarations_begin(text: str, path: str, expected: list[str]) -> None:
    """A piece begins behind its documentation, or in the middle of a function."""
    assert [text.split("\n")[line].strip() for line in declaration_lines(text, path)] == expected


def test_without_a_grammar_there_are_none() -> None:
    """A language without a grammar, or a text that takes too long to parse, ends in a traceback."""
    assert declaration_lines("IDENTIFICATION DIVISION.", "a.cobol") == []
    assert declaration_lines(KOTLIN, "Makefile") == []
    assert declaration_lines("", "a.kt") == []
    assert declaration_lines("a?" * 500_000, "a.kt") == []


def test_declarations_within_deep_ones() -> None:
    """A file of classes within classes ends in an error of recursion."""
    text = "".join("class A {\n" for _ in range(300)) + "}\n" * 300
    assert declaration_lines(text, "a.kt")[:3] == [0, 1, 2]
