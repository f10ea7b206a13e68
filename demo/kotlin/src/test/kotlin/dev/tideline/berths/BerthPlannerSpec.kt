/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.berths

import dev.tideline.core.Events
import dev.tideline.core.Metres
import dev.tideline.core.Moment
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.Spec
import dev.tideline.core.StillClock
import dev.tideline.core.Tonnes
import dev.tideline.core.Window
import dev.tideline.core.into
import dev.tideline.ships.Ship
import dev.tideline.ships.ShipId
import dev.tideline.ships.ShipKind

private val NOON = Moment.of(day = 3, hour = 12)
private val AFTERNOON = Window(NOON, NOON + Span.ofHours(6))

private fun coaster(number: Int, draught: Double = 5.0): Ship =
    Ship(
        id = ShipId("900000$number"),
        name = "Coaster $number",
        kind = ShipKind.BULK,
        length = Metres(90.0),
        draught = Metres(draught),
        deadweight = Tonnes(4_000.0),
    )

private class Quay {
    val clock = StillClock(NOON)
    val events = Events()
    val berths = InMemoryBerthStore()
    val planner = BerthPlanner(
        berths = berths,
        stays = InMemoryBerthStayStore(),
        events = events,
        clock = clock,
    )

    init {
        berths.add(berth("long", 200.0))
        berths.add(berth("short", 100.0))
    }

    private fun berth(name: String, length: Double): Berth =
        Berth(
            id = BerthId(name),
            length = Metres(length),
            depth = Metres(7.0),
            kinds = setOf(ShipKind.BULK),
        )
}

/** Describes how berths are suggested, assigned and freed. */
class BerthPlannerSpec : Spec({
    case("the shortest berth that fits is suggested first") {
        val quay = given("a quay with two berths") { Quay() }
        expect(quay.planner.suggest(coaster(1), AFTERNOON).into { it.id }).toGive(BerthId("short"))
    }

    case("a berth is not given to two ships at once") {
        val quay = given("a quay with two berths") { Quay() }
        expect(quay.planner.assign(BerthId("short"), coaster(1), AFTERNOON)).toBeDone()
        expect(quay.planner.assign(BerthId("short"), coaster(2), AFTERNOON)).toBeRefusedFor(Reason.CONFLICT)
        expect(quay.events.countOf<BerthAssigned>()).toBe(1)
    }

    case("a ship that draws too much is kept off") {
        val quay = given("a quay with two berths") { Quay() }
        val outcome = quay.planner.assign(BerthId("long"), coaster(3, draught = 6.8), AFTERNOON)
        expect(outcome).toBeRefusedFor(Reason.UNSAFE)
    }

    case("a berth is freed when its ship leaves") {
        val quay = given("a quay with two berths") { Quay() }
        quay.planner.assign(BerthId("long"), coaster(4), AFTERNOON)
        quay.clock.advance(Span.ofHours(2))
        expect(quay.planner.free(coaster(4).id).into { it.window.length }).toGive(Span.ofHours(2))
        val gap = quay.planner.findGap(BerthId("long"), Span.ofHours(1))
        expect(gap.into { it.from }).toGive(quay.clock.now())
    }
})
