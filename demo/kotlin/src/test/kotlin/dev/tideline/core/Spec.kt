/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.core

/** Describes how one class behaves, case by case. */
abstract class Spec(private val body: SpecScope.() -> Unit) {
    /** Runs every case and reports what went wrong. */
    fun run(): SpecReport {
        val scope = SpecScope().apply(body)
        return SpecReport(name = this::class.simpleName ?: "Spec", results = scope.listResults())
    }
}

/** Holds the failures of one case, of which there are none when all is well. */
data class CaseResult(val title: String, val failures: List<String>)

/** Holds the results of all cases of a spec. */
data class SpecReport(val name: String, val results: List<CaseResult>) {
    /** Counts the cases that failed. */
    fun countFailed(): Int = results.count { it.failures.isNotEmpty() }

    /** Renders one line for each case and one for each failure. */
    fun render(): String =
        results.joinToString(separator = "\n", prefix = "$name\n") { result ->
            val mark = if (result.failures.isEmpty()) "ok  " else "FAIL"
            (listOf("  $mark ${result.title}") + result.failures.map { "         $it" }).joinToString("\n")
        }
}

/** Collects the cases of a spec. */
class SpecScope {
    private val results = mutableListOf<CaseResult>()

    /** Runs one case that is named by a plain sentence. */
    fun case(title: String, body: CaseScope.() -> Unit) {
        val scope = CaseScope().apply(body)
        results += CaseResult(title, scope.failures)
    }

    internal fun listResults(): List<CaseResult> = results.toList()
}

/** Gives a case the words it is written in. */
class CaseScope {
    internal val failures = mutableListOf<String>()

    /** Prepares something that the case needs and says what it is. */
    fun <T> given(what: String, prepare: () -> T): T =
        prepare().also { if (what.isBlank()) failures += "a given needs a description" }

    /** Starts an expectation about the value. */
    fun <T> expect(actual: T): Expectation<T> = Expectation(actual) { failures += it }
}

/** Compares an actual value with what the case wants. */
class Expectation<T>(private val actual: T, private val fail: (String) -> Unit) {
    /** Expects the value to equal another one. */
    fun toBe(expected: T) {
        if (actual != expected) fail("expected $expected but got $actual")
    }

    /** Expects the value to pass a test that is described in words. */
    fun toSatisfy(what: String, test: (T) -> Boolean) {
        if (!test(actual)) fail("expected $actual to be $what")
    }

    /** Expects a granted request with the value. */
    fun toGive(expected: Any?) {
        if (actual != Done(expected)) fail("expected Done($expected) but got $actual")
    }

    /** Expects a granted request, whatever its value. */
    fun toBeDone() {
        if (actual !is Done<*>) fail("expected a granted request but got $actual")
    }

    /** Expects a request that was refused for the reason. */
    fun toBeRefusedFor(reason: Reason) {
        if ((actual as? Refused)?.reason != reason) fail("expected a refusal for $reason but got $actual")
    }
}
