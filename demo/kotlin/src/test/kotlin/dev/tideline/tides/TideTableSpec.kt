/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.tides

import dev.tideline.core.Metres
import dev.tideline.core.Moment
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.Spec
import dev.tideline.core.Window
import dev.tideline.core.into

private val MIDNIGHT = Moment.of(day = 0, hour = 0)
private val FIRST_DAY = Window(MIDNIGHT, MIDNIGHT + Span.ofDays(1))

private fun tableOf(amplitude: Double): TideTable =
    TideTable(
        gauge = GaugeId("harbour mouth"),
        meanLevel = Metres(4.0),
        constituents = listOf(
            Constituent(
                name = "main",
                amplitude = Metres(amplitude),
                periodHours = 12.0,
                phaseHours = 3.0,
            ),
        ),
    )

/** Describes how the water rises and falls at one gauge. */
class TideTableSpec : Spec({
    case("the water is highest when the phase of its only wave comes round") {
        val table = given("a tide of two metres") { tableOf(2.0) }
        expect(table.heightAt(MIDNIGHT + Span.ofHours(3))).toBe(Metres(6.0))
        expect(table.heightAt(MIDNIGHT + Span.ofHours(9))).toBe(Metres(2.0))
    }

    case("a day has two high waters and two low ones") {
        val slacks = given("the slacks of a day") { tableOf(2.0).listSlacks(FIRST_DAY) }
        expect(slacks.count { it.kind == SlackKind.HIGH_WATER }).toBe(2)
        expect(slacks.count { it.kind == SlackKind.LOW_WATER }).toBe(2)
    }

    case("the next high water is the one of the afternoon") {
        val table = given("a tide of two metres") { tableOf(2.0) }
        val next = table.findNextHighWater(MIDNIGHT + Span.ofHours(5))
        expect(next.into { it.moment }).toGive(MIDNIGHT + Span.ofHours(15))
    }

    case("a passage waits until the sill is covered") {
        val table = given("a tide of two metres") { tableOf(2.0) }
        val passage = table.findPassage(
            draught = Metres(6.5),
            sill = Metres(1.0),
            length = Span.ofHours(2),
            within = FIRST_DAY,
        )
        expect(passage).toBeDone()
    }

    case("no passage is found over a sill that stays dry") {
        val passage = tableOf(0.5).findPassage(
            draught = Metres(9.0),
            sill = Metres(1.0),
            length = Span.ofHours(1),
            within = FIRST_DAY,
        )
        expect(passage).toBeRefusedFor(Reason.UNSAFE)
    }
})
