/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.core

/** Describes how granted and refused requests are strung together. */
class OutcomeSpec : Spec({
    fun half(number: Int): Outcome<Int> =
        requireThat(number % 2 == 0, Reason.INVALID) { "$number is odd" }.into { number / 2 }

    case("a granted request goes on with the next one") {
        expect(half(12).then { half(it) }).toGive(3)
    }

    case("a refusal skips everything that follows") {
        var calls = 0
        val outcome = half(7).then {
            calls += 1
            half(it)
        }
        expect(outcome).toBeRefusedFor(Reason.INVALID)
        expect(calls).toBe(0)
    }

    case("a fallback sees the message of the refusal") {
        expect(half(5).into { it.toString() }.orElse { it.message }).toBe("5 is odd")
        expect(half(8).into { it.toString() }.orElse { it.message }).toBe("4")
    }

    case("values are gathered in their order") {
        expect(listOf(2, 4, 6).map { half(it) }.gather()).toGive(listOf(1, 2, 3))
    }

    case("the first refusal wins when values are gathered") {
        val outcomes = given("two refusals for different reasons") {
            listOf(half(2), refuse(Reason.FULL) { "full" }, half(3))
        }
        expect(outcomes.gather()).toBeRefusedFor(Reason.FULL)
    }

    case("a missing value is refused as not found") {
        val names = given("a map with one name") { mapOf("pilot" to "Ines") }
        expect(requireFound(names["pilot"]) { "no pilot" }).toGive("Ines")
        expect(requireFound(names["skipper"]) { "no skipper" }).toBeRefusedFor(Reason.NOT_FOUND)
    }
})
